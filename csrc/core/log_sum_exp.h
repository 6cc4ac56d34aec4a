// Cross entropy of one row of logits and its gradient, from sums of exponentials whose order is the same on every ISA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "core/cross_entropy.h"
#include "core/exp.h"
#include "core/lanes.h"

namespace pf::PF_ISA {

constexpr int kSumLanes = 16;            // float sums side by side, whatever the vectors
constexpr int kSumVectors = kSumLanes / kLanes;
constexpr int kAbreast = 2;              // so many times kSumLanes at once, that none waits for another
constexpr int64_t kSegmentLogits = 512;  // what they add up, 32 terms each, before a double takes over

// Lanes put together in halves: each with that so many lanes on, as long as there is one.
template <class Combine>
PF_INLINE float fold_lanes(const Floats (&vectors)[kSumVectors], const Combine& combine) {
  Floats folded = vectors[0];
  if constexpr (kSumVectors == 2) folded = combine(folded, vectors[1]);
  if constexpr (kLanes == 16) folded = combine(folded, rotate_lanes<8>(folded));
  folded = combine(folded, rotate_lanes<4>(folded));
  folded = combine(folded, rotate_lanes<2>(folded));
  return combine(folded, rotate_lanes<1>(folded))[0];
}
PF_INLINE float sum_of_lanes(const Floats (&vectors)[kSumVectors]) {
  return fold_lanes(vectors, [](Floats a, Floats b) { return a + b; });
}
PF_INLINE float max_of_lanes(const Floats (&vectors)[kSumVectors]) {
  return fold_lanes(vectors, [](Floats a, Floats b) { return greater(a, b); });
}

// log(sum of exp) of the logits seen so far, which may come in parts.
struct LogSumExp {
  float max = -INFINITY;
  double sum = 0.0;  // of exp(logit - shift())

  // With nothing above -inf so far, differences from the maximum would be NaN.
  float shift() const { return max == -INFINITY ? 0.0f : max; }

  // At most kSegmentLogits of them, each kSumLanes `stride` apart. Calls each(at, vector, exponentials) for the lanes
  // from `at` + vector * kLanes, those past `count` being 0. Returns what earlier exponentials are to be multiplied by.
  template <class Each>
  PF_INLINE float add(const float* logits, int64_t count, int64_t stride, const Each& each) {
    const int64_t whole = count / kSumLanes, left = count % kSumLanes;
    const auto vector_at = [&](int64_t at, int v) { return load_lanes(logits + at * stride + v * kLanes); };
    float rest[kSumLanes];  // filled up with what adds nothing
    for (int lane = 0; lane < kSumLanes; ++lane) rest[lane] = lane < left ? logits[whole * stride + lane] : -INFINITY;

    Floats vectors[kSumVectors];
    for (int v = 0; v < kSumVectors; ++v) vectors[v] = greater(load_lanes(rest + v * kLanes), Floats{} + max);
    for (int64_t at = 0; at < whole; ++at)
      for (int v = 0; v < kSumVectors; ++v) vectors[v] = greater(vector_at(at, v), vectors[v]);
    const float before = max;
    max = max_of_lanes(vectors);

    const float shifted_by = shift();
    const auto add_exponentials = [&](int64_t at, auto& values) {
      for (Floats& value : values) value -= shifted_by;
      exponentiate(values);
      for (int v = 0; v < int(std::size(values)); ++v) {
        each(at + v / kSumVectors, v % kSumVectors, values[v]);
        vectors[v % kSumVectors] += values[v];
      }
    };
    for (Floats& sums : vectors) sums = Floats{};
    if (left) {
      Floats values[kSumVectors];
      for (int v = 0; v < kSumVectors; ++v) values[v] = load_lanes(rest + v * kLanes);
      add_exponentials(whole, values);
    }
    int64_t at = 0;
    for (; at + kAbreast <= whole; at += kAbreast) {
      Floats values[kAbreast * kSumVectors];
      for (int v = 0; v < kAbreast * kSumVectors; ++v) values[v] = vector_at(at + v / kSumVectors, v % kSumVectors);
      add_exponentials(at, values);
    }
    for (; at < whole; ++at) {
      Floats values[kSumVectors];
      for (int v = 0; v < kSumVectors; ++v) values[v] = vector_at(at, v);
      add_exponentials(at, values);
    }
    const float rescale = exp(before - shifted_by);
    sum = sum * double(rescale) + double(sum_of_lanes(vectors));
    return rescale;
  }

  void add(const float* logits, int64_t count) {
    add(logits, count, kSumLanes, [](int64_t, int, Floats) {});
  }

  float cross_entropy(float label_logit) const { return pf::cross_entropy(max, sum, label_logit); }

  // That of weight * cross_entropy, for all logits added; `to` may be `logits`.
  void gradient(const float* logits, int64_t count, int64_t label, float weight, float* to) const {
    const float scale = float(double(weight) / sum), shifted_by = shift();
    for (int64_t j = 0; j < count; ++j) to[j] = scale * exp(logits[j] - shifted_by);
    to[label] -= weight;
  }
};

inline bool labels_exist(const int64_t* labels, int64_t count, int64_t vocabulary, int64_t ignore_index) {
  for (int64_t i = 0; i < count; ++i)
    if (labels[i] != ignore_index && (labels[i] < 0 || labels[i] >= vocabulary)) return false;
  return true;
}

}  // namespace pf::PF_ISA
