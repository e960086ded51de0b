// Ends the source of a library: its kernel, named EP_KERNEL, as the runtime runs it.
#pragma once

#include <utility>

#include "../cuh/machine.cuh"
#include "runtime.h"

namespace ep::host {

inline void begin(const World& world, i64 rank) {
  poison_variables(&ep_machine);
  Machine& machine = ep_machine;
  machine = {};
  for (i64 peer = 0; peer < world.num_ranks; ++peer)
    machine.bases[peer] = world.windows + peer * world.stride_bytes;
#ifndef EP_VIRTUAL
  machine.first_rank = rank;
#else
  machine.first_rank = 0;
  (void)rank;
#endif
  machine.world_size = world.num_ranks;
  machine.ranks_per_node = world.ranks_per_node;
  machine.abort_offset = world.abort_offset;
  machine.limit_ns = world.limit_ns;
  machine.report = world.report;
}

template <class... Params, std::size_t... INDEX>
void call(void (*kernel)(Params...), const i64* params, std::index_sequence<INDEX...>) {
  kernel(params[INDEX]...);
}
template <class... Params>
constexpr i64 count(void (*)(Params...)) {
  return sizeof...(Params);
}

}  // namespace ep::host

extern "C" int ep_host_run(const ep::host::World* world) {
  constexpr auto num_params = ep::host::count(&EP_KERNEL);
  const auto kernel = [](const ep::host::i64* params) {
    ep::host::call(&EP_KERNEL, params, std::make_index_sequence<num_params>());
  };
  return ep::host::run(*world, {ep::host::begin, kernel, num_params});
}
