// Kernels of which each is good or bad at one thing; sm_90.json and sm_90.txt are what NVRTC 13.5,
// nvdisasm and cuobjdump make of them.

using u32 = unsigned int;
using u64 = unsigned long long;

struct alignas(16) Vec {
  u32 x, y, z, w;
};

__device__ __forceinline__ Vec load(const Vec* at) {
  Vec v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}

__device__ __forceinline__ void store(Vec* at, Vec v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Each lane has NUM_LOADS loads under way.
template <int NUM_LOADS>
__device__ __forceinline__ void copy(Vec* target, const Vec* source, long n) {
#pragma unroll 1
  for (long i = threadIdx.x; i < n; i += 512 * NUM_LOADS) {
    Vec values[NUM_LOADS];
#pragma unroll
    for (int j = 0; j < NUM_LOADS; ++j) values[j] = load(source + i + 512 * j);
#pragma unroll
    for (int j = 0; j < NUM_LOADS; ++j) store(target + i + 512 * j, values[j]);
  }
}

extern "C" __global__ void __launch_bounds__(512, 1) copy8(Vec* target, const Vec* source, long n) {
  copy<8>(target, source, n);
}

extern "C" __global__ void __launch_bounds__(512, 1) copy1(Vec* target, const Vec* source, long n) {
  copy<1>(target, source, n);
}

// Eight rows become one.
extern "C" __global__ void __launch_bounds__(512, 1) sum8(Vec* target, const Vec* source, long n) {
#pragma unroll 1
  for (long i = threadIdx.x; i < n; i += 512) {
    Vec values[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) values[j] = load(source + i + j * n);
#pragma unroll
    for (int j = 1; j < 8; ++j) {
      values[0].x += values[j].x;
      values[0].y += values[j].y;
      values[0].z += values[j].z;
      values[0].w += values[j].w;
    }
    store(target + i, values[0]);
  }
}

extern "C" __global__ void __launch_bounds__(512, 1) narrow(u32* target, const u32* source, long n) {
#pragma unroll 1
  for (long i = threadIdx.x; i < n; i += 512) target[i] = source[i];
}

extern "C" __global__ void __launch_bounds__(1024, 2) spill(u32* target, const u32* source, long n) {
  u32 a[48];
#pragma unroll
  for (int j = 0; j < 48; ++j) a[j] = source[threadIdx.x * 48 + j];
  for (long i = 0; i < n; ++i)
#pragma unroll
    for (int j = 0; j < 48; ++j) a[j] = a[j] * a[(j + 7) % 48] + a[(j + 13) % 48];
#pragma unroll
  for (int j = 0; j < 48; ++j) target[threadIdx.x * 48 + j] = a[j];
}

// One wait, one exchange through shared memory, one of each kind of release.
extern "C" __global__ void __launch_bounds__(64, 1) flags(u64* flag, u64* out, u64 wanted) {
  __shared__ u64 shared[64];
  u64 seen;
  do {
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(seen) : "l"(flag) : "memory");
  } while (seen < wanted);
  shared[threadIdx.x] = seen;
  __syncthreads();
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(out), "l"(shared[63 - threadIdx.x])
               : "memory");
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(out + 1), "l"(seen) : "memory");
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(out + 2), "l"(seen) : "memory");
}

#if __CUDA_ARCH__ >= 900
// One lane moves 8 KiB at a time through shared memory.
extern "C" __global__ void __launch_bounds__(32, 1) bulk(char* target, const char* source, long n) {
  extern __shared__ __align__(128) char stage[];
  __shared__ __align__(8) u64 barrier;
  const u32 at = __cvta_generic_to_shared(stage), arrived = __cvta_generic_to_shared(&barrier);
  if (threadIdx.x != 0) return;
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(arrived));
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  u32 phase = 0, is_done;
  for (long i = 0; i < n; i += 8192, phase ^= 1) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 8192;" ::"r"(arrived)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 8192, [%2];" ::
            "r"(at),
        "l"(source + i), "r"(arrived)
        : "memory");
    do {
      asm volatile(
          "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
          : "=r"(is_done)
          : "r"(arrived), "r"(phase)
          : "memory");
    } while (!is_done);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 8192;" ::"l"(target + i),
                 "r"(at)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
#endif
