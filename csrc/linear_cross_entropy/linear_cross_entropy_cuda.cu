#include "bindings/cuda_forms.h"
#include "core/four.cuh"
#include "core/matrix_tile.cuh"
#include "core/running_exponentials.h"

namespace pf::cuda {

namespace {

constexpr int kRowThreads = kTile / kColumns;  // that share a row of a tile

int64_t tiles_of(int64_t count) { return (count + kTile - 1) / kTile; }

__device__ int at_most_four(int64_t left) { return int(max(int64_t{0}, min(int64_t{4}, left))); }

// Panels whose i are rows of a matrix, and whose k are its columns.
class Rows {
 public:
  static constexpr bool along_depth = true;

  __device__ Rows(const float* matrix, int64_t rows, int64_t width, int64_t first) {
    const int64_t row = first + panel_i<along_depth>();
    row_ = matrix + row * width;
    width_ = row < rows ? width : 0;
  }

  __device__ void fetch(int64_t k, float (&four)[4]) const { load_four(row_ + k, at_most_four(width_ - k), four); }
  __device__ void finish(float (&)[4]) const {}

 private:
  const float* row_;  // the thread's
  int64_t width_;
};

// Panels whose k are rows of a matrix, and whose i are its columns.
class Columns {
 public:
  static constexpr bool along_depth = false;

  __device__ Columns(const float* matrix, int64_t rows, int64_t width, int64_t first_row, int64_t first_column)
      : rows_left_(rows - first_row), width_(width) {
    const int64_t column = first_column + panel_i<along_depth>();
    columns_ = matrix + first_row * width + column;
    count_ = at_most_four(width - column);
  }

  __device__ void fetch(int64_t k, float (&four)[4]) const {
    load_four(columns_ + k * width_, k < rows_left_ ? count_ : 0, four);
  }
  __device__ void finish(float (&)[4]) const {}

 private:
  const float* columns_;  // the thread's, in the first row
  int64_t rows_left_, width_;
  int count_;
};

using GradientTile = float[kTile][kPanelStride];

// Panels whose k are the first index of a tile in shared memory, none past its end.
struct Gradients {
  static constexpr bool along_depth = false;
  const GradientTile& tile;

  __device__ void fetch(int64_t k, float (&four)[4]) const {
    load_four_aligned(&tile[k][panel_i<along_depth>()], four);
  }
  __device__ void finish(float (&)[4]) const {}
};

__device__ bool exists(const LinearCrossEntropy& op, int64_t label) { return label >= 0 && label < op.vocabulary; }

// The known part of the logits of a chain; token t of all chains has row t % rows of the offset.
class Known {
 public:
  __device__ Known(const LinearCrossEntropy& op, int64_t rows, int64_t chain)
      : op_(op), rows_(rows), before_(chain * op.tokens) {}

  __device__ float offset(int64_t token, int64_t word) const {
    return op_.offset[(before_ + token) % rows_ * op_.vocabulary + word];
  }

  // What a thread's part of a tile starts from, whose rows are tokens or words.
  template <bool tokens_are_rows>
  __device__ void start(int64_t first_row, int64_t first_column, TilePart& logits) const {
    if (!op_.offset) return;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int64_t row = first_row + tile_row() + i, column = first_column + tile_column() + j;
        const int64_t token = tokens_are_rows ? row : column, word = tokens_are_rows ? column : row;
        if (token < op_.tokens && word < op_.vocabulary)
          logits[i][j] = op_.offset_scale[before_ + token] * offset(token, word);
      }
  }

 private:
  const LinearCrossEntropy& op_;
  const int64_t rows_, before_;
};

// A block owns a tile of tokens and walks the vocabulary. A thread keeps what it has seen of its rows.
__global__ void __launch_bounds__(kTileThreads)
    losses_kernel(const LinearCrossEntropy op, int64_t offset_rows, int64_t tiles, float2* exponentials) {
  __shared__ Panels panels;
  __shared__ int64_t label[kTile];
  __shared__ float label_logit[kTile];
  __shared__ float maxima[kTile][kRowThreads + 1];
  __shared__ double sums[kTile][kRowThreads + 1];
  const int64_t chain = blockIdx.x / tiles, first_token = (blockIdx.x - chain * tiles) * kTile;
  const int64_t token = first_token + threadIdx.x, place = chain * op.tokens + token;  // of the first threads
  const bool has_token = threadIdx.x < kTile && token < op.tokens;
  if (threadIdx.x < kTile) label[threadIdx.x] = has_token ? op.labels[place] : -1;
  __syncthreads();

  const float* const unembedding = op.unembedding + (op.unembeddings == 1 ? 0 : chain) * op.vocabulary * op.width;
  const Rows hidden(op.hidden + chain * op.tokens * op.width, op.tokens, op.width, first_token);
  const Known known(op, offset_rows, chain);
  RunningExponentials seen[kRows];
  for (int64_t first = 0; first < op.vocabulary; first += kTile) {
    TilePart logits = {};
    known.start<true>(first_token, first, logits);
    multiply_tile(panels, op.width, hidden, Rows(unembedding, op.vocabulary, op.width, first), logits, [](int) {});
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t label_here = label[tile_row() + i] - first - tile_column();
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (first + tile_column() + j >= op.vocabulary) logits[i][j] = -INFINITY;
        if (label_here == j) label_logit[tile_row() + i] = logits[i][j];
      }
      seen[i].add(logits[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    maxima[tile_row() + i][tile_column() / kColumns] = seen[i].max;
    sums[tile_row() + i][tile_column() / kColumns] = seen[i].sum;
  }
  __syncthreads();
  if (!has_token) return;
  RunningExponentials all;
  for (int i = 0; i < kRowThreads; ++i) all.merge({maxima[threadIdx.x][i], sums[threadIdx.x][i]});
  const int64_t own_label = label[threadIdx.x];
  op.losses[place] = own_label == op.ignore_index ? 0.0f
                     : exists(op, own_label)      ? all.cross_entropy(label_logit[threadIdx.x])
                                                  : NAN;
  exponentials[place] = make_float2(all.shift(), all.gradient_scale(op.weights ? op.weights[place] : 1.0f));
}

// What the gradient of a token's logits is made of. Without a label there is none.
struct TokenGradient {
  int64_t label;
  float shift, scale, weight;

  __device__ float operator()(float logit, int64_t word) const {
    return label < 0 ? 0.0f : scale * exp(logit - shift) - (word == label ? weight : 0.0f);
  }
};

__device__ TokenGradient token_gradient(const LinearCrossEntropy& op, const float2* exponentials, int64_t chain,
                                        int64_t token) {
  if (token >= op.tokens) return {-1, 0.0f, 0.0f, 0.0f};
  const int64_t place = chain * op.tokens + token, label = op.labels[place];
  if (label == op.ignore_index || !exists(op, label)) return {-1, 0.0f, 0.0f, 0.0f};
  const float2 seen = exponentials[place];
  return {label, seen.x, seen.y, op.weights ? op.weights[place] : 1.0f};
}

// The gradient of the rows of one factor of the logits, hidden states or unembedding. A block owns a tile of its rows
// and walks the rows of the other factor, in order: it makes a tile of logits again, turns it into its gradient, and
// adds the product of that and the other rows to its own rows' gradient, in memory, where only this thread touches it.
template <bool of_hidden>
__global__ void __launch_bounds__(kTileThreads)
    gradient_kernel(const LinearCrossEntropy op, int64_t offset_rows, int64_t tiles, const float2* exponentials) {
  __shared__ Panels panels;
  alignas(16) __shared__ GradientTile gradients;  // [other row][row]
  __shared__ TokenGradient tokens[kTile];
  const int64_t chain = blockIdx.x / tiles, first_row = (blockIdx.x - chain * tiles) * kTile;
  const int64_t width = op.width, row_count = of_hidden ? op.tokens : op.vocabulary;
  const int64_t other_count = of_hidden ? op.vocabulary : op.tokens;
  const float* const hidden = op.hidden + chain * op.tokens * width;
  const float* const unembedding = op.unembedding + (op.unembeddings == 1 ? 0 : chain) * op.vocabulary * width;
  const float* const others = of_hidden ? unembedding : hidden;
  float* const out = of_hidden ? op.grad_hidden + chain * op.tokens * width
                               : op.grad_unembedding + chain * op.vocabulary * width;
  const Known known(op, offset_rows, chain);
  const Rows rows(of_hidden ? hidden : unembedding, row_count, width, first_row);

  // Where there are no others, the gradient is 0 and wants writing all the same.
  for (int64_t first_other = 0; first_other == 0 || first_other < other_count; first_other += kTile) {
    if (threadIdx.x < kTile && (!of_hidden || first_other == 0))
      tokens[threadIdx.x] =
          token_gradient(op, exponentials, chain, (of_hidden ? first_row : first_other) + threadIdx.x);
    __syncthreads();
    TilePart logits = {};
    known.start<of_hidden>(first_row, first_other, logits);
    multiply_tile(panels, width, rows, Rows(others, other_count, width, first_other), logits, [](int) {});
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int row = tile_row() + i, other = tile_column() + j;
        const int64_t word = of_hidden ? first_other + other : first_row + row;
        gradients[other][row] = word < op.vocabulary ? tokens[of_hidden ? row : other](logits[i][j], word) : 0.0f;
      }
    __syncthreads();
    for (int64_t first_column = 0; first_column < width; first_column += kTile) {
      const int64_t column = first_column + tile_column();
      const int count = at_most_four(width - column);
      TilePart sums = {};
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t row = first_row + tile_row() + i;
        if (first_other > 0 && row < row_count) load_four(out + row * width + column, count, sums[i]);
      }
      multiply_tile(panels, min(int64_t{kTile}, other_count - first_other), Gradients{gradients},
                    Columns(others, other_count, width, first_other, first_column), sums, [](int) {});
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t row = first_row + tile_row() + i;
        if (row < row_count) store_four(sums[i], count, out + row * width + column);
      }
    }
  }
}

// The gradient of the scales of the offset: a block owns a tile of tokens and walks the vocabulary once more.
__global__ void __launch_bounds__(kTileThreads)
    offset_scale_kernel(const LinearCrossEntropy op, int64_t offset_rows, int64_t tiles, const float2* exponentials) {
  __shared__ Panels panels;
  __shared__ TokenGradient tokens[kTile];
  __shared__ double sums[kTile][kRowThreads + 1];
  const int64_t chain = blockIdx.x / tiles, first_token = (blockIdx.x - chain * tiles) * kTile;
  const int64_t token = first_token + threadIdx.x;  // of the first threads
  if (threadIdx.x < kTile) tokens[threadIdx.x] = token_gradient(op, exponentials, chain, token);
  __syncthreads();

  const float* const unembedding = op.unembedding + (op.unembeddings == 1 ? 0 : chain) * op.vocabulary * op.width;
  const Rows hidden(op.hidden + chain * op.tokens * op.width, op.tokens, op.width, first_token);
  const Known known(op, offset_rows, chain);
  double own[kRows] = {};
  for (int64_t first = 0; first < op.vocabulary; first += kTile) {
    TilePart logits = {};
    known.start<true>(first_token, first, logits);
    multiply_tile(panels, op.width, hidden, Rows(unembedding, op.vocabulary, op.width, first), logits, [](int) {});
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int row = tile_row() + i;
        const int64_t word = first + tile_column() + j;
        if (first_token + row < op.tokens && word < op.vocabulary)
          own[i] += double(tokens[row](logits[i][j], word)) * double(known.offset(first_token + row, word));
      }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) sums[tile_row() + i][tile_column() / kColumns] = own[i];
  __syncthreads();
  if (threadIdx.x >= kTile || token >= op.tokens) return;
  double sum = 0.0;
  for (int i = 0; i < kRowThreads; ++i) sum += sums[threadIdx.x][i];
  op.grad_offset_scale[chain * op.tokens + token] = float(sum);
}

}  // namespace

cudaError_t linear_cross_entropy(const LinearCrossEntropy& given, float* workspace, cudaStream_t stream) {
  LinearCrossEntropy op = given;
  const int64_t offset_rows = op.offsets * op.tokens;
  if (op.unembeddings == 1) {  // chains that share an unembedding are one long chain
    op.tokens *= op.chains;
    op.chains = 1;
  }
  float2* const exponentials = reinterpret_cast<float2*>(workspace);
  const int64_t token_tiles = tiles_of(op.tokens), word_tiles = tiles_of(op.vocabulary);
  if (op.chains * token_tiles > 0) {
    const unsigned blocks = unsigned(op.chains * token_tiles);
    losses_kernel<<<blocks, kTileThreads, 0, stream>>>(op, offset_rows, token_tiles, exponentials);
    if (op.grad_hidden)
      gradient_kernel<true><<<blocks, kTileThreads, 0, stream>>>(op, offset_rows, token_tiles, exponentials);
    if (op.grad_offset_scale)
      offset_scale_kernel<<<blocks, kTileThreads, 0, stream>>>(op, offset_rows, token_tiles, exponentials);
  }
  if (op.grad_unembedding && op.chains * word_tiles > 0)
    gradient_kernel<false><<<unsigned(op.chains * word_tiles), kTileThreads, 0, stream>>>(op, offset_rows, word_tiles,
                                                                                          exponentials);
  return cudaGetLastError();
}

}  // namespace pf::cuda
