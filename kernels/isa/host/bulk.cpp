// The copy engine. A copy happens when it is waited for, at a random time before, or at once, as
// the launch asks; a stage holds no bytes between. For ThreadSanitizer each lane has three actors,
// which load, read stages and write rows. They know what lanes of the block, which may be others
// than the one that asks, had done before their last `fence_to_bulk`, and what the lane has waited
// for.
#include <algorithm>
#include <cstring>
#include <memory>

#include "block.h"

namespace ep::host {

constexpr unsigned char STAGE_POISON = 0xcd;
constexpr i64 BULK_ALIGNMENT = 16;

namespace {

// An mbarrier as it lies in shared memory.
struct Barrier {
  u64 phase : 1, published : 1, pending : 20, count : 20;
  i64 bytes : 22;
};
static_assert(sizeof(Barrier) == 8);

Barrier& at(u64* barrier) { return *reinterpret_cast<Barrier*>(barrier); }

void end_phase(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.count;
}

struct Load {
  void* stage;
  i64 source;
  u32 num_bytes;
  u64* barrier;
};
constexpr i64 NO_GROUP = -1;
struct Store {
  i64 target;
  const void* stage;
  u32 num_bytes;
  i64 group;  // NO_GROUP until committed
  bool is_read;
  std::unique_ptr<char[]> bytes;

  bool is_in_groups_before(i64 end) const { return group != NO_GROUP && group < end; }
};

}  // namespace

struct Copies {
  Actor loader, reader, writer;
  char flow = 0, read = 0, written = 0;
  std::vector<Load> loads;
  std::vector<Store> stores;
  i64 num_groups = 0;

  void know(void* object) {
    for (Actor* actor : {&loader, &reader, &writer}) actor->does([=] { acquired(object); });
  }
  void do_load(std::size_t place) {
    const Unwatched unwatched;
    const Load load = loads[place];
    loads.erase(loads.begin() + place);
    const auto* source = reinterpret_cast<const void*>(load.source);
    loader.does([&] {
      reads(source, load.num_bytes);
      writes(load.stage, load.num_bytes);
      released(load.barrier);
    });
    std::memcpy(load.stage, source, load.num_bytes);
    Barrier& barrier = at(load.barrier);
    barrier.bytes -= load.num_bytes;
    if (barrier.bytes < 0)
      fail("a bulk load of %u bytes that its barrier does not expect", load.num_bytes);
    end_phase(barrier);
  }
  void do_read(Store& store) {
    if (store.is_read) return;
    const Unwatched unwatched;
    store.bytes.reset(new char[store.num_bytes]);
    store.is_read = true;
    reader.does([&] {
      reads(store.stage, store.num_bytes);
      released(&flow);
      released(&read);
    });
    std::memcpy(store.bytes.get(), store.stage, store.num_bytes);
  }
  void do_write(std::size_t place) {
    const Unwatched unwatched;
    do_read(stores[place]);
    const Store store = std::move(stores[place]);
    stores.erase(stores.begin() + place);
    auto* target = reinterpret_cast<void*>(store.target);
    writer.does([&] {
      acquired(&flow);
      writes(target, store.num_bytes);
      released(&written);
    });
    std::memcpy(target, store.bytes.get(), store.num_bytes);
  }
};

Lane::Lane() = default;
Lane::~Lane() = default;

static Copies& mine() {
  auto& copies = current->copies;
  if (copies == nullptr) {
    const Unwatched unwatched;
    copies = std::make_unique<Copies>();
  }
  return *copies;
}

static void check(i64 row, const void* stage, u32 num_bytes) {
  const i64 all = row | reinterpret_cast<i64>(stage) | num_bytes;
  if (num_bytes == 0 || all % BULK_ALIGNMENT != 0)
    fail("a bulk copy of %u bytes between %#llx and %p: all are multiples of %lld", num_bytes, row,
         stage, BULK_ALIGNMENT);
}

static i64 times() { return current->block->launch.world.bulk_times; }

void init_barrier(u64* barrier, u32 count) {
  at(barrier) = {.phase = 0, .published = 0, .pending = count, .count = count, .bytes = 0};
  const Unwatched unwatched;
  current->block->unpublished.push_back(barrier);
}

void publish_barriers() {
  for (u64* barrier : current->block->unpublished) at(barrier).published = 1;
  current->block->unpublished.clear();
}

void arrive_barrier(u64* address, u32 expected_bytes) {
  Barrier& barrier = at(address);
  if (!barrier.published) fail("an arrival at a barrier that was not published");
  if (barrier.pending == 0) fail("more arrivals at a barrier than it counts");
  released(address);
  barrier.bytes += expected_bytes;
  --barrier.pending;
  end_phase(barrier);
}

bool try_barrier(u64* address, u32 parity) {
  Block& block = *current->block;
  const bool was_over = at(address).phase != (parity & 1);
  if (!was_over) {
    // Loads that end this phase come now, some of them at the next call.
    for (Lane& lane : block.lanes) {
      if (lane.copies == nullptr) continue;
      auto& loads = lane.copies->loads;
      for (std::size_t place = loads.size(); place-- > 0;)
        if (loads[place].barrier == address && block.random.one_in(2)) lane.copies->do_load(place);
    }
    poll();
  }
  if (at(address).phase == (parity & 1)) return false;
  acquired(address);
  mine().know(address);
  return true;
}

void bulk_load(void* stage, i64 source, u32 num_bytes, u64* barrier) {
  check(source, stage, num_bytes);
  if (!at(barrier).published) fail("a bulk load with a barrier that was not published");
  Copies& copies = mine();
  copies.know(&current->block->fenced);
  copies.loader.does([=] { writes(stage, num_bytes); });
  const Unwatched unwatched;
  std::memset(stage, STAGE_POISON, num_bytes);
  copies.loads.push_back({stage, source, num_bytes, barrier});
  if (times() == AT_ONCE) copies.do_load(copies.loads.size() - 1);
}

void bulk_store(i64 target, const void* stage, u32 num_bytes) {
  check(target, stage, num_bytes);
  Copies& copies = mine();
  copies.know(&current->block->fenced);
  const Unwatched unwatched;
  copies.stores.push_back({target, stage, num_bytes, NO_GROUP, false, nullptr});
  if (times() == AT_ONCE) copies.do_read(copies.stores.back());
}

void bulk_commit() {
  Copies& copies = mine();
  for (Store& store : copies.stores)
    if (store.group == NO_GROUP) store.group = copies.num_groups;
  ++copies.num_groups;
}

void bulk_wait_read(int num_pending) {
  Copies& copies = mine();
  for (Store& store : copies.stores)
    if (store.is_in_groups_before(copies.num_groups - num_pending)) copies.do_read(store);
  acquired(&copies.read);
  copies.know(&copies.read);
}

void bulk_wait(int num_pending) {
  Copies& copies = mine();
  for (std::size_t place = 0; place < copies.stores.size();)
    if (copies.stores[place].is_in_groups_before(copies.num_groups - num_pending))
      copies.do_write(place);
    else
      ++place;
  acquired(&copies.written);
  copies.know(&copies.written);
}

void fence_to_bulk() { released(&current->block->fenced); }

void stir_copies(Block& block) {
  if (block.launch.world.bulk_times == AT_WAITS) return;
  for (Lane& lane : block.lanes) {
    Copies* copies = lane.copies.get();
    if (copies == nullptr || !block.random.one_in(4)) continue;
    const auto num_loads = static_cast<u32>(copies->loads.size());
    const auto num_stores = static_cast<u32>(copies->stores.size());
    if (num_loads != 0) copies->do_load(block.random.below(num_loads));
    if (num_stores == 0) continue;
    const u32 place = block.random.below(num_stores);
    if (copies->stores[place].is_read)
      copies->do_write(place);
    else
      copies->do_read(copies->stores[place]);
  }
}

const char* check_copies(const Lane& lane) {
  const Copies* copies = lane.copies.get();
  if (copies == nullptr) return nullptr;
  if (!copies->loads.empty()) return "a bulk load that nobody has waited for";
  const auto& stores = copies->stores;
  const auto is_read = [](const Store& store) { return store.is_read; };
  const bool all_read = std::all_of(stores.begin(), stores.end(), is_read);
  return all_read ? nullptr : "a stage that a bulk store has not read";
}

void drop_copies(Lane& lane) {
  const Unwatched unwatched;
  lane.copies.reset();
}

void finish_copies(Block& block) {
  for (Lane& lane : block.lanes)
    if (lane.copies != nullptr)
      while (!lane.copies->stores.empty()) lane.copies->do_write(0);
}

}  // namespace ep::host
