// The noise alone.
#pragma once
#include <cstdint>

namespace pf {

struct Normal {
  float* out;                // [chains, params]
  const int64_t* chain_ids;  // [chains]
  const int64_t* seed;
  const int64_t* step;
  int64_t chains, param_count;
};

using NormalForm = void (*)(const Normal&, int threads);

}  // namespace pf
