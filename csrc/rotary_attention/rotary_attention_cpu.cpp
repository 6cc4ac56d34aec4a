// One head of one sequence at a time, its scores in blocks of 16 keys and 16 queries. A score has its key for row and
// its query for lane: what belongs to a query stays in its lane, so that maxima and sums are over rows, in order, on
// every machine. All products are of one tile, which reads either factor by rows or by columns.
#include "rotary_attention/rotary_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/exp.h"
#include "core/matrix_product.h"
#include "core/normal.h"

namespace pf::PF_ISA {

namespace {

constexpr int kSide = 16;  // of a block: keys, queries, or coordinates of a head
constexpr int kTile = 4;   // rows of a tile, which is kSide wide: as many as the registers of the least machine hold

// to[r][c] += the sum over k < depth, in order, of left[r * left_row + k * left_step] right[k][c], for a tile of `to`;
// with `from` null to what it holds, else to from[c].
PF_INLINE void add_product(const float* left, int64_t left_row, int64_t left_step, const float* right,
                           int64_t right_row, int64_t depth, const float* from, float* to, int64_t to_row) {
  using namespace tile;
  constexpr int kVectors = kSide / kTileLanes;
  Lanes sums[kTile][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kTile; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = tile::load((from ? from : to + r * to_row) + v * kTileLanes);
  for (int64_t k = 0; k < depth; ++k) {
    Lanes row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = tile::load(right + k * right_row + v * kTileLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kTile; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sums[r][v] = multiply_add(left[r * left_row + k * left_step], row[v], sums[r][v]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kTile; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) std::memcpy(to + r * to_row + v * kTileLanes, &sums[r][v], sizeof(Lanes));
}

// scores[key][query] = from[query] + vectors[key] · queries[·][query] for the keys of a block.
PF_INLINE void score(const float* vectors, int64_t row, const float* queries, int64_t width, const float* from,
                     float* scores) {
  for (int64_t j = 0; j < kSide; j += kTile)
    add_product(vectors + j * row, row, 1, queries, kSide, width, from, scores + j * kSide, kSide);
}

// to[query] += the sum over keys of weights[key][query] vectors[key]; on the diagonal tiles leave out later keys.
PF_INLINE void gather(const float* weights, const float* vectors, int64_t row, bool diagonal, float* to) {
  for (int64_t i = 0; i < kSide; i += kTile)
    for (int64_t c = 0; c < row; c += kSide)
      add_product(weights + i, 1, kSide, vectors + c, row, diagonal ? i + kTile : kSide, nullptr, to + i * row + c, row);
}

// to[key] += the sum over queries of weights[key][query] vectors[query]; on the diagonal tiles leave out earlier ones.
PF_INLINE void scatter(const float* weights, const float* vectors, int64_t row, bool diagonal, float* to) {
  for (int64_t j = 0; j < kSide; j += kTile) {
    const int64_t query = diagonal ? j : 0;
    for (int64_t c = 0; c < row; c += kSide)
      add_product(weights + j * kSide + query, kSide, 1, vectors + query * row + c, row, kSide - query, nullptr,
                  to + j * row + c, row);
  }
}

PF_INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
PF_INLINE void store(Floats value, float* to) { std::memcpy(to, &value, sizeof value); }

// On the diagonal: the score of a key later than its query becomes -inf.
PF_INLINE void mask(float* scores) {
  for (int v = 0; v < kSide; v += kLanes) {
    Ints query;
    for (int lane = 0; lane < kLanes; ++lane) query[lane] = v + lane;
    for (int key = 1; key < kSide; ++key)
      store(if_negative(query - key, Floats{} - INFINITY, load(scores + key * kSide + v)), scores + key * kSide + v);
  }
}

typedef float Four __attribute__((vector_size(16)));

template <int a, int b, int c, int d>
PF_INLINE Four shuffle(Four x, Four y) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, a, b, c, d);
#else
  typedef int32_t Places __attribute__((vector_size(16)));
  return __builtin_shuffle(x, y, Places{a, b, c, d});
#endif
}

// to[c][r] = from[r][c] for r < kSide, c < row.
PF_INLINE void transpose(const float* __restrict from, int64_t row, float* __restrict to) {
  for (int64_t c = 0; c < row; c += 4)
    for (int r = 0; r < kSide; r += 4) {
      Four x[4];
      for (int i = 0; i < 4; ++i) std::memcpy(&x[i], from + (r + i) * row + c, sizeof(Four));
      const Four low01 = shuffle<0, 4, 1, 5>(x[0], x[1]), high01 = shuffle<2, 6, 3, 7>(x[0], x[1]);
      const Four low23 = shuffle<0, 4, 1, 5>(x[2], x[3]), high23 = shuffle<2, 6, 3, 7>(x[2], x[3]);
      const Four columns[4] = {shuffle<0, 1, 4, 5>(low01, low23), shuffle<2, 3, 6, 7>(low01, low23),
                               shuffle<0, 1, 4, 5>(high01, high23), shuffle<2, 3, 6, 7>(high01, high23)};
      for (int i = 0; i < 4; ++i) std::memcpy(to + (c + i) * kSide + r, &columns[i], sizeof(Four));
    }
}

// One head of one sequence: where its vectors are, and the sizes, of which the width may be known to the compiler.
// Vectors are worked on as rows, filled up with 0 to whole blocks, and there are rows for whole blocks of positions.
template <int64_t known_width>
struct Head {
  int64_t sequence, head, length, heads, any_width;

  PF_INLINE int64_t width() const { return known_width ? known_width : any_width; }
  PF_INLINE int64_t row() const { return divide_up(width(), kSide) * kSide; }
  PF_INLINE int64_t rows() const { return divide_up(length, kSide) * kSide; }
  PF_INLINE float scale() const { return float(1.0 / std::sqrt(double(width()))); }

  // Of the vector at a position: in qkv, as query, key or value (part 0, 1 or 2); in mixed; in the log sums.
  PF_INLINE int64_t in_qkv(int64_t part, int64_t position) const {
    return (((sequence * length + position) * 3 + part) * heads + head) * width();
  }
  PF_INLINE int64_t in_mixed(int64_t position) const {
    return ((sequence * length + position) * heads + head) * width();
  }
  PF_INLINE int64_t in_log_sums(int64_t position) const { return (sequence * heads + head) * length + position; }
  PF_INLINE int64_t qkv_stride() const { return 3 * heads * width(); }
  PF_INLINE int64_t mixed_stride() const { return heads * width(); }

  // How many of a block's positions there are.
  PF_INLINE int64_t present(int64_t first) const { return std::min<int64_t>(kSide, length - first); }

  // A block of vectors, `stride` apart.
  PF_INLINE void read(const float* __restrict from, int64_t stride, int64_t count, float* __restrict to) const {
    if (count < kSide || row() > width()) std::fill_n(to, kSide * row(), 0.0f);
    for (int64_t t = 0; t < count; ++t, from += stride, to += row())
      for (int64_t i = 0; i < width(); ++i) to[i] = from[i];
  }
  PF_INLINE void write(const float* __restrict from, int64_t stride, int64_t count, float* __restrict to) const {
    for (int64_t t = 0; t < count; ++t, from += row(), to += stride)
      for (int64_t i = 0; i < width(); ++i) to[i] = from[i];
  }

  // The same for queries or keys, which are turned by their angles, and scaled.
  PF_INLINE void read_turned(const float* __restrict from, const float* __restrict cos, const float* __restrict sin,
                             float scale, int64_t count, float* __restrict to) const {
    const int64_t half = width() / 2;
    if (count < kSide || row() > width()) std::fill_n(to, kSide * row(), 0.0f);
    for (int64_t t = 0; t < count; ++t, from += qkv_stride(), cos += width(), sin += width(), to += row()) {
      for (int64_t i = 0; i < half; ++i) {
        const float first = from[i], second = from[i + half];
        to[i] = scale * fma(first, cos[i], -(second * sin[i]));
        to[i + half] = scale * fma(second, cos[i + half], first * sin[i + half]);
      }
    }
  }
  // Their gradients, which are turned back.
  PF_INLINE void write_turned(const float* __restrict from, const float* __restrict cos, const float* __restrict sin,
                              float scale, int64_t count, float* __restrict to) const {
    const int64_t half = width() / 2;
    for (int64_t t = 0; t < count; ++t, from += row(), cos += width(), sin += width(), to += qkv_stride())
      for (int64_t i = 0; i < half; ++i) {
        const float first = from[i], second = from[i + half];
        to[i] = scale * fma(first, cos[i], second * sin[i + half]);
        to[i + half] = scale * fma(second, cos[i + half], -(first * sin[i]));
      }
  }

  int64_t attend_floats() const { return rows() * (2 * row() + kSide) + 3 * kSide * row(); }

  void attend(const RotaryAttention& op, float* scratch) const {
    float* const keys = scratch;
    float* const values = keys + rows() * row();
    float* const scores = values + rows() * row();
    float* const queries = scores + rows() * kSide;
    float* const columns = queries + kSide * row();
    float* const gathered = columns + kSide * row();
    const float zeros[kSide] = {};
    for (int64_t first = 0; first < length; first += kSide) {
      const int64_t count = present(first), turn = first * width();
      read_turned(op.qkv + in_qkv(1, first), op.cos + turn, op.sin + turn, 1.0f, count, keys + first * row());
      read(op.qkv + in_qkv(2, first), qkv_stride(), count, values + first * row());
      read_turned(op.qkv + in_qkv(0, first), op.cos + turn, op.sin + turn, scale(), count, queries);
      transpose(queries, row(), columns);
      for (int64_t key = 0; key <= first; key += kSide)
        score(keys + key * row(), row(), columns, width(), zeros, scores + key * kSide);
      mask(scores + first * kSide);
      float max[kSide], sum[kSide];
      for (int v = 0; v < kSide; v += kLanes) {
        Floats top = load(scores + v);
        for (int64_t j = 1; j < first + kSide; ++j) top = greater(load(scores + j * kSide + v), top);
        store(top, max + v);
      }
      std::fill_n(sum, kSide, 0.0f);
      std::fill_n(gathered, kSide * row(), 0.0f);
      for (int64_t key = 0; key <= first; key += kSide) {
        float* const block = scores + key * kSide;
        for (int v = 0; v < kSide; v += kLanes) {
          const Floats top = load(max + v);
          Floats total = load(sum + v);
          for (int j = 0; j < kSide; ++j) {
            const Floats each = exp(load(block + j * kSide + v) - top);
            store(each, block + j * kSide + v);
            total += each;
          }
          store(total, sum + v);
        }
        gather(block, values + key * row(), row(), key == first, gathered);
      }
      float part[kSide], log_sum[kSide];
      for (int v = 0; v < kSide; v += kLanes) {
        store(1.0f / load(sum + v), part + v);
        store(load(max + v) + log(load(sum + v)), log_sum + v);
      }
      for (int64_t q = 0; q < kSide; ++q)
        for (int64_t c = 0; c < row(); ++c) gathered[q * row() + c] *= part[q];
      write(gathered, mixed_stride(), count, op.mixed + in_mixed(first));
      std::copy_n(log_sum, count, op.log_sums + in_log_sums(first));
    }
  }

  int64_t differentiate_floats() const { return rows() * 4 * row() + 7 * kSide * row() + 2 * kSide * kSide; }

  void differentiate(const RotaryAttentionGradient& op, float* scratch) const {
    float* const keys = scratch;
    float* const values = keys + rows() * row();
    float* const grad_keys = values + rows() * row();
    float* const grad_values = grad_keys + rows() * row();
    float* const queries = grad_values + rows() * row();
    float* const query_columns = queries + kSide * row();
    float* const grads = query_columns + kSide * row();
    float* const grad_columns = grads + kSide * row();
    float* const mixed = grad_columns + kSide * row();
    float* const mixed_columns = mixed + kSide * row();
    float* const grad_queries = mixed_columns + kSide * row();
    float* const weights = grad_queries + kSide * row();
    float* const grad_scores = weights + kSide * kSide;
    std::fill_n(grad_keys, 2 * rows() * row(), 0.0f);
    for (int64_t first = 0; first < length; first += kSide) {
      const int64_t count = present(first), turn = first * width();
      read_turned(op.qkv + in_qkv(1, first), op.cos + turn, op.sin + turn, 1.0f, count, keys + first * row());
      read(op.qkv + in_qkv(2, first), qkv_stride(), count, values + first * row());
      read_turned(op.qkv + in_qkv(0, first), op.cos + turn, op.sin + turn, scale(), count, queries);
      read(op.grad_mixed + in_mixed(first), mixed_stride(), count, grads);
      read(op.mixed + in_mixed(first), mixed_stride(), count, mixed);
      transpose(queries, row(), query_columns);
      transpose(grads, row(), grad_columns);
      transpose(mixed, row(), mixed_columns);
      // A probability is exp(score - log sum), the gradient of its score the probability times what its own gradient
      // is above the mean of those of its query, which is that of mixed times mixed.
      float minus_log_sum[kSide] = {}, minus_mean[kSide];
      for (int64_t q = 0; q < count; ++q) minus_log_sum[q] = -op.log_sums[in_log_sums(first + q)];
      for (int v = 0; v < kSide; v += kLanes) {
        Floats mean{};
        for (int64_t c = 0; c < width(); ++c)
          mean = fma(load(grad_columns + c * kSide + v), load(mixed_columns + c * kSide + v), mean);
        store(-mean, minus_mean + v);
      }
      std::fill_n(grad_queries, kSide * row(), 0.0f);
      for (int64_t key = 0; key <= first; key += kSide) {
        score(keys + key * row(), row(), query_columns, width(), minus_log_sum, weights);
        score(values + key * row(), row(), grad_columns, width(), minus_mean, grad_scores);
        if (key == first) mask(weights);
        for (int at = 0; at < kSide * kSide; at += kLanes) {
          const Floats weight = exp(load(weights + at));
          store(weight, weights + at);
          store(weight * load(grad_scores + at), grad_scores + at);
        }
        gather(grad_scores, keys + key * row(), row(), key == first, grad_queries);
        scatter(grad_scores, queries, row(), key == first, grad_keys + key * row());
        scatter(weights, grads, row(), key == first, grad_values + key * row());
      }
      write_turned(grad_queries, op.cos + turn, op.sin + turn, scale(), count, op.grad_qkv + in_qkv(0, first));
    }
    for (int64_t first = 0; first < length; first += kSide) {
      const int64_t count = present(first), turn = first * width();
      write_turned(grad_keys + first * row(), op.cos + turn, op.sin + turn, 1.0f, count,
                   op.grad_qkv + in_qkv(1, first));
      write(grad_values + first * row(), qkv_stride(), count, op.grad_qkv + in_qkv(2, first));
    }
  }
};

// Calls body(head, scratch) for every head of every sequence.
template <int64_t known_width, class Op, class Floats_, class Body>
void for_heads(const Op& op, int threads, const Floats_& floats, const Body& body) {
  const int64_t size = divide_up(floats(Head<known_width>{0, 0, op.length, op.heads, op.width}), kSide) * kSide;
  const Buffer scratch(threads * size);
  parallel_for_workers(op.batch * op.heads, threads, [&](int64_t at, int64_t worker) {
    body(Head<known_width>{at / op.heads, at % op.heads, op.length, op.heads, op.width},
         scratch.floats() + worker * size);
  });
}

template <class Op, class Floats_, class Body>
void for_heads_of_width(const Op& op, int threads, const Floats_& floats, const Body& body) {
  if (op.width == 16)
    for_heads<16>(op, threads, floats, body);
  else if (op.width == 32)
    for_heads<32>(op, threads, floats, body);
  else
    for_heads<0>(op, threads, floats, body);
}

}  // namespace

void rotary_attention(const RotaryAttention& op, int threads) {
  for_heads_of_width(
      op, threads, [](auto head) { return head.attend_floats(); },
      [&](auto head, float* scratch) { head.attend(op, scratch); });
}

void rotary_attention_gradient(const RotaryAttentionGradient& op, int threads) {
  for_heads_of_width(
      op, threads, [](auto head) { return head.differentiate_floats(); },
      [&](auto head, float* scratch) { head.differentiate(op, scratch); });
}

}  // namespace pf::PF_ISA
