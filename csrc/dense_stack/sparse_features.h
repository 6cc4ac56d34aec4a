// Samples that are made where they are asked for: feature i is uniform in [0, 1) with probability presence[i], else 0.
// Sample s has the words of (seed, s): feature i the i-th of them, of whose 24 high bits u = k / 2^24 is made. It is
// u / presence[i] where u is less than that.
#pragma once
#include <cstdint>

#include "core/noise_block.h"

namespace pf::PF_ISA {

constexpr int64_t kSamplesTogether = kBlockCounters;

// Feature i of sample samples[b] to to[i * stride + b], for b < count rounded up to kSamplesTogether.
inline void sparse_features(const float* presence, int64_t features, uint64_t seed, const int64_t* samples, int64_t count,
                            float* to, int64_t stride) {
  using namespace lanes;
  for (int64_t b = 0; b < count; b += kSamplesTogether)
    for (int64_t first = 0; first < features; first += 4) {
      Wide x[kGroups], y[kGroups], z[kGroups], w[kGroups];
      const Words4 place = counter(Stream::data, 0, 0, uint64_t(first) / 4);
      for (int group = 0; group < kGroups; ++group) {
        // What narrow makes of counter c is element c / kQuarters of quarter c % kQuarters.
        const Wide counters = dealt(uint64_t(group % 2 * 2 * kQuarters));
        for (int lane = 0; lane < kLanes / 2; ++lane) {
          const int64_t c = int64_t(counters[lane]);
          z[group][lane] = uint64_t(samples[b + group / 2 * kLanes + 4 * (c % kQuarters) + c / kQuarters]);
        }
        x[group] = Wide{} + place.x, y[group] = Wide{} + place.y, w[group] = Wide{} + place.w;
      }
      philox4x32(x, y, z, w, uint32_t(seed), uint32_t(seed >> 32));
      for (int group = 0; group < kGroups; group += 2) {
        const Ints words[4] = {narrow(x[group], x[group + 1]), narrow(y[group], y[group + 1]),
                               narrow(z[group], z[group + 1]), narrow(w[group], w[group + 1])};
        for (int64_t i = 0; i < 4 && first + i < features; ++i) {
          const Floats p = Floats{} + presence[first + i], u = to_float(shift_right(words[i], 8)) * 0x1p-24f;
          const Floats value = if_negative(Ints(u < p), u / p, Floats{});
          store_lanes(value, to + (first + i) * stride + b + group / 2 * kLanes);
        }
      }
    }
}

}  // namespace pf::PF_ISA
