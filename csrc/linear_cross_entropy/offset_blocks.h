// Cross entropy of logits of which a part is known beforehand, in blocks of tokens. What is known is read once, straight
// into the registers of the product with what is not, and a row of logits does not leave the nearest cache before its
// exponentials are made, so that a narrow product costs its arithmetic. The gradient is made from the same exponentials.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/log_sum_exp.h"
#include "core/matrix_product.h"
#include "linear_cross_entropy/linear_cross_entropy.h"

namespace pf::PF_ISA {

constexpr int64_t kPanel = kSumLanes;  // columns of a panel, on every ISA
constexpr int kPanelVectors = kPanel / kTileLanes;
constexpr int64_t kBlockTokens = 48;  // their exponentials stay in L2 where a gradient needs them again
static_assert(kBlockTokens % kTileRows == 0 && kSegmentLogits % kPanel == 0);

// Tokens that share an unembedding; that of token t has its row t % offset_rows of the offset.
class OffsetBlocks {
 public:
  OffsetBlocks(const LinearCrossEntropy& op, int64_t offset_rows, int threads)
      : op_(op),
        offset_rows_(offset_rows),
        threads_(threads),
        held_(op.grad_hidden || op.grad_unembedding || op.grad_offset_scale),
        rows_(std::clamp<int64_t>(whole_tiles(divide_up(op.tokens, threads)), kTileRows, kBlockTokens)),
        panels_(divide_up(op.vocabulary, kPanel)),
        // One row more, as lines a power of two apart would share a few places of the cache.
        panel_stride_((held_ ? rows_ + 1 : kTileRows) * kPanel),
        logits_size_((held_ ? panels_ : kSegmentLogits / kPanel) * panel_stride_),
        unembedding_(panels_ * kPanel * op.width),
        logits_(threads * logits_size_),
        hidden_(threads * rows_ * op.width),
        scaled_hidden_(op.grad_unembedding ? threads * rows_ * whole_tiles(op.width) : 0),
        grad_hidden_(op.grad_hidden ? threads * rows_ * op.width : 0),
        grad_unembedding_(op.grad_unembedding ? panels_ * kPanel * whole_tiles(op.width) : 0),
        tokens_(size_t(threads * rows_)) {}

  void run() {
    pack_unembedding();
    if (op_.grad_unembedding)
      std::fill_n(grad_unembedding_.floats(), panels_ * kPanel * whole_tiles(op_.width), 0.0f);
    const int64_t blocks = divide_up(op_.tokens, rows_), at_once = held_ ? threads_ : blocks;
    for (int64_t first = 0; first < blocks; first += at_once) {
      const int64_t count = std::min(at_once, blocks - first);
      parallel_for_workers(count, threads_, [&](int64_t at, int64_t worker) {
        const Block block = block_at(first + at, held_ ? at : worker);
        sum_exponentials(block);
        finish_losses(block);
        if (op_.grad_hidden) differentiate_hidden(block);
        if (op_.grad_unembedding) scale_hidden(block);
      });
      if (op_.grad_unembedding)
        parallel_for(panels_, threads_, [&](int64_t panel) {
          for (int64_t at = 0; at < count; ++at) differentiate_panel(block_at(first + at, at), panel);
        });
    }
    if (op_.grad_unembedding) unpack_gradient();
  }

 private:
  struct Token {
    LogSumExp logits;
    double offset_sum = 0.0;  // of exponential times offset
    float label_logit = 0.0f;
    float gradient_scale = 0.0f;  // times what is held of a logit is the gradient of that logit
  };

  // Some tokens, and where their numbers are kept.
  struct Block {
    int64_t first, rows;
    float *logits, *hidden, *scaled_hidden, *grad_hidden;  // logits: [panel][row][column], later their exponentials
    Token* tokens;
  };

  // One tile of a panel, += left times a panel. Not inlined, as compilers then run out of registers.
  __attribute__((noinline)) static void add_product(const float* left, const float* panel, int64_t depth, float* to) {
    multiply_tile_from<kPanelVectors>([&](int i, int j) { return tile::load(to + i * kPanel + j * kTileLanes); },
                                      [&](int64_t k) { return left + k * kTileRows; }, 1, panel, kPanel, depth, to,
                                      kPanel);
  }

  static int64_t whole_tiles(int64_t rows) { return divide_up(rows, kTileRows) * kTileRows; }

  Block block_at(int64_t at, int64_t place) {
    const int64_t first = at * rows_, before = place * rows_;
    return {first,
            std::min(rows_, op_.tokens - first),
            logits_.floats() + place * logits_size_,
            hidden_.floats() + before * op_.width,
            scaled_hidden_.floats() + before * whole_tiles(op_.width),
            grad_hidden_.floats() + before * op_.width,
            tokens_.data() + before};
  }

  const float* offset_of(int64_t token) const { return op_.offset + token % offset_rows_ * op_.vocabulary; }

  void pack_unembedding() const {
    parallel_for(panels_, threads_, [&](int64_t panel) {
      const int64_t first = panel * kPanel;
      pack<kPanel>(op_.unembedding + first * op_.width, op_.width, 1, std::min(kPanel, op_.vocabulary - first),
                   op_.width, unembedding_.floats() + first * op_.width);
    });
  }

  void sum_exponentials(const Block& block) const {
    std::fill_n(block.tokens, block.rows, Token{});
    for (int64_t row = 0; row < block.rows; row += kTileRows)
      pack<kTileRows>(op_.hidden + (block.first + row) * op_.width, op_.width, 1,
                      std::min<int64_t>(kTileRows, block.rows - row), op_.width, block.hidden + row * op_.width);
    for (int64_t column = 0; column < op_.vocabulary; column += kSegmentLogits)
      for (int64_t row = 0; row < block.rows; row += kTileRows)
        sum_exponentials(block, row, column, std::min(kSegmentLogits, op_.vocabulary - column));
  }

  // Those of a tile's rows.
  void sum_exponentials(const Block& block, int64_t first_row, int64_t column, int64_t columns) const {
    const int64_t rows = std::min<int64_t>(kTileRows, block.rows - first_row), left = columns % kPanel;
    const float *offsets[kTileRows], *next[kTileRows];
    float scales[kTileRows], rest[kTileRows * kPanel];  // rest: offsets of a panel that is not full
    for (int64_t i = 0; i < kTileRows; ++i) {
      const int64_t token = block.first + first_row + std::min(i, rows - 1);  // the last again where there is none
      offsets[i] = offset_of(token) + column;
      next[i] = offset_of(std::min(token + kTileRows, op_.tokens - 1)) + column;
      scales[i] = op_.offset_scale[token];
      for (int64_t j = 0; left > 0 && j < kPanel; ++j)
        rest[i * kPanel + j] = j < left ? offsets[i][columns - left + j] : 0.0f;
    }
    const float* const hidden = block.hidden + first_row * op_.width;
    float* const logits =
        held_ ? block.logits + column / kPanel * panel_stride_ + first_row * kPanel : block.logits;
    for (int64_t at = 0; at < columns; at += kPanel) {
      const bool whole = at + kPanel <= columns;
      if (whole)  // memory is slow to answer
        for (const float* row : next) __builtin_prefetch(row + at, 0, 2);
      const auto start = [&](int i, int j) {
        return scales[i] * tile::load((whole ? offsets[i] + at : rest + i * kPanel) + j * kTileLanes);
      };
      multiply_tile_from<kPanelVectors>(start, [&](int64_t k) { return hidden + k * kTileRows; }, 1,
                                        unembedding_.floats() + (column + at) * op_.width, kPanel, op_.width,
                                        logits + at / kPanel * panel_stride_, kPanel);
    }
    for (int64_t i = 0; i < rows; ++i) {
      Token& token = block.tokens[first_row + i];
      float* const row = logits + i * kPanel;
      const int64_t label = op_.labels[block.first + first_row + i] - column;
      if (0 <= label && label < columns) token.label_logit = row[label / kPanel * panel_stride_ + label % kPanel];
      if (held_)
        hold_exponentials(token, row, columns, offsets[i], rest + i * kPanel, column);
      else
        token.logits.add(row, columns, panel_stride_, [](int64_t, int, Floats) {});
    }
  }

  // Leaves in place of logits their exponentials, all of a token's about the same maximum.
  void hold_exponentials(Token& token, float* row, int64_t columns, const float* offset, const float* rest,
                         int64_t column) const {
    const int64_t whole = columns / kPanel;
    Floats offset_sums[kSumVectors] = {};
    const float rescale = token.logits.add(row, columns, panel_stride_, [&](int64_t at, int v, Floats exponentials) {
      const Floats known = load_lanes((at < whole ? offset + at * kPanel : rest) + v * kLanes);
      offset_sums[v] = fma(exponentials, known, offset_sums[v]);
      store_lanes(exponentials, row + at * panel_stride_ + v * kLanes);
    });
    token.offset_sum = token.offset_sum * double(rescale) + double(sum_of_lanes(offset_sums));
    if (rescale == 1.0f) return;
    for (float* earlier = row - column / kPanel * panel_stride_; earlier < row; earlier += panel_stride_)
      for (int lane = 0; lane < kPanel; ++lane) earlier[lane] *= rescale;
  }

  void finish_losses(const Block& block) const {
    for (int64_t i = 0; i < block.rows; ++i) {
      Token& token = block.tokens[i];
      const int64_t at = block.first + i, label = op_.labels[at];
      const bool ignored = label == op_.ignore_index;
      const double weight = op_.weights ? double(op_.weights[at]) : 1.0, sum = token.logits.sum;
      op_.losses[at] = ignored ? 0.0f : token.logits.cross_entropy(token.label_logit);
      if (op_.grad_offset_scale)
        op_.grad_offset_scale[at] =
            ignored ? 0.0f : float(weight * (token.offset_sum / sum - double(offset_of(at)[label])));
      if (!held_) continue;
      float* const row = block.logits + i * kPanel;
      token.gradient_scale = ignored ? 0.0f : float(weight / sum);
      if (ignored)
        for (int64_t panel = 0; panel < panels_; ++panel) std::fill_n(row + panel * panel_stride_, kPanel, 0.0f);
      else
        row[label / kPanel * panel_stride_ + label % kPanel] -= float(sum);
    }
  }

  // Columns by tiles, and those left over by inner products.
  void differentiate_hidden(const Block& block) const {
    const int64_t width = op_.width, whole = width / kPanel * kPanel;
    for (int64_t column = 0; column < op_.vocabulary; column += kSegmentLogits)
      for (int64_t row = 0; row < block.rows; row += kTileRows)
        for (int64_t to = 0; to < whole; to += kPanel) {
          float* const sums = block.grad_hidden + row * width + to;
          const float* const held = block.logits + column / kPanel * panel_stride_ + row * kPanel;
          const auto start = [&](int i, int j) {
            return column > 0 ? tile::load(sums + i * width + j * kTileLanes) : tile::Lanes{};
          };
          const auto left = [&](int64_t k) { return held + k / kPanel * panel_stride_ + k % kPanel; };
          multiply_tile_from<kPanelVectors>(start, left, kPanel, op_.unembedding + column * width + to, width,
                                            std::min(kSegmentLogits, op_.vocabulary - column), sums, width);
        }
    for (int64_t row = 0; row < block.rows; row += kTileRows)
      for (int64_t to = whole; to < width; ++to) {
        Floats sums[kTileRows][kSumVectors] = {};
        for (int64_t panel = 0; panel < panels_; ++panel) {
          const float* const held = block.logits + panel * panel_stride_ + row * kPanel;
          for (int v = 0; v < kSumVectors; ++v) {
            const Floats words = load_lanes(unembedding_.floats() + (panel * width + to) * kPanel + v * kLanes);
            for (int i = 0; i < kTileRows; ++i)
              sums[i][v] = fma(load_lanes(held + i * kPanel + v * kLanes), words, sums[i][v]);
          }
        }
        for (int i = 0; i < kTileRows; ++i) block.grad_hidden[(row + i) * width + to] = sum_of_lanes(sums[i]);
      }
    for (int64_t i = 0; i < block.rows; ++i)
      for (int64_t j = 0; j < width; ++j)
        op_.grad_hidden[(block.first + i) * width + j] =
            block.tokens[i].gradient_scale * block.grad_hidden[i * width + j];
  }

  // The left factor of the gradient of the unembedding, as panels of kTileRows columns of hidden.
  void scale_hidden(const Block& block) const {
    for (int64_t i = 0; i < block.rows; ++i)
      for (int64_t j = 0; j < whole_tiles(op_.width); ++j)
        block.scaled_hidden[(j / kTileRows * rows_ + i) * kTileRows + j % kTileRows] =
            j < op_.width ? block.tokens[i].gradient_scale * op_.hidden[(block.first + i) * op_.width + j] : 0.0f;
  }

  void differentiate_panel(const Block& block, int64_t panel) const {
    for (int64_t j = 0; j < op_.width; j += kTileRows)
      add_product(block.scaled_hidden + j * rows_, block.logits + panel * panel_stride_, block.rows,
                  grad_unembedding_.floats() + (panel * whole_tiles(op_.width) + j) * kPanel);
  }

  void unpack_gradient() const {
    parallel_for(panels_, threads_, [&](int64_t panel) {
      const float* const from = grad_unembedding_.floats() + panel * whole_tiles(op_.width) * kPanel;
      const int64_t first = panel * kPanel;
      for (int64_t i = 0; i < std::min(kPanel, op_.vocabulary - first); ++i)
        for (int64_t j = 0; j < op_.width; ++j)
          op_.grad_unembedding[(first + i) * op_.width + j] = from[j * kPanel + i];
    });
  }

  const LinearCrossEntropy& op_;
  const int64_t offset_rows_;
  const int threads_;
  const bool held_;
  const int64_t rows_, panels_, panel_stride_, logits_size_;
  const Buffer unembedding_;  // [panel][width][column]
  const Buffer logits_, hidden_, scaled_hidden_, grad_hidden_;
  const Buffer grad_unembedding_;  // [panel][width, to whole tiles][column]
  std::vector<Token> tokens_;
};

}  // namespace pf::PF_ISA
