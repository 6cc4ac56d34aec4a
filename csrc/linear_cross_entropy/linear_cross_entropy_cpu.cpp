#include "linear_cross_entropy/linear_cross_entropy.h"

#include <algorithm>
#include <memory>

#include "core/log_sum_exp.h"
#include "core/matrix_product.h"
#include "linear_cross_entropy/offset_blocks.h"

namespace pf::PF_ISA {

namespace {

constexpr int64_t kHeldLogits = int64_t{1} << 22;  // at once, where a gradient needs them again
constexpr int64_t kMostTokens = 16384;             // at once, where no logits are held

struct Token {
  LogSumExp logits;
  float label_logit = 0.0f;
};

// One unembedding's tokens, in chunks: as many as have their logits held.
class Chunks {
 public:
  Chunks(const LinearCrossEntropy& op, int threads)
      : op_(op),
        held_(op.grad_hidden || op.grad_unembedding),
        chunk_(chunk_tokens(op, held_)),
        slab_columns_(
            std::clamp(kSlabFloats / std::max<int64_t>(op.width, 1) & -kLeastColumns, kLeastColumns, kSlabColumns)),
        workspace_(threads, std::max(kSlabFloats, slab_columns_ * op.width)),
        logits_(held_ ? chunk_ * op.vocabulary : threads * kBlockRows * kSlabColumns),
        tokens_(new Token[size_t(chunk_)]) {}

  void run() const {
    for (int64_t first = 0; first < op_.tokens; first += chunk_) {
      const int64_t count = std::min(chunk_, op_.tokens - first);
      sum_exponentials(first, count);
      for (int64_t i = 0; i < count; ++i)
        op_.losses[first + i] =
            ignored(first + i) ? 0.0f : tokens_[i].logits.cross_entropy(tokens_[i].label_logit);
      if (held_) differentiate(first, count);
    }
  }

 private:
  static int64_t chunk_tokens(const LinearCrossEntropy& op, bool held) {
    const int64_t most =
        held ? std::max<int64_t>(kHeldLogits / std::max<int64_t>(op.vocabulary, 1), 1) : kMostTokens;
    return divide_up(op.tokens, std::max<int64_t>(divide_up(op.tokens, most), 1));
  }

  bool ignored(int64_t token) const { return op_.labels[token] == op_.ignore_index; }

  void sum_exponentials(int64_t first, int64_t count) const {
    std::fill_n(tokens_.get(), count, Token{});
    const int64_t block = block_rows(count, workspace_.threads);
    for (int64_t column = 0; column < op_.vocabulary; column += slab_columns_) {
      const int64_t columns = std::min(slab_columns_, op_.vocabulary - column);
      pack_slab({op_.unembedding + column * op_.width, 1, op_.width}, op_.width, columns, workspace_.threads,
                workspace_.panels.floats());
      parallel_for_workers(divide_up(count, block), workspace_.threads, [&](int64_t at, int64_t worker) {
        const int64_t begin = at * block, rows = std::min(block, count - begin);
        const int64_t stride = held_ ? op_.vocabulary : kSlabColumns;
        float* const logits =
            logits_.floats() + (held_ ? begin * stride + column : worker * kBlockRows * kSlabColumns);
        multiply_block({op_.hidden + (first + begin) * op_.width, op_.width, 1}, rows, workspace_.panels.floats(),
                       op_.width, columns, false, logits, stride, workspace_.block(worker));
        for (int64_t i = 0; i < rows; ++i) {
          Token& token = tokens_[begin + i];
          token.logits.add(logits + i * stride, columns);
          const int64_t label = op_.labels[first + begin + i] - column;
          if (0 <= label && label < columns) token.label_logit = logits[i * stride + label];
        }
      });
    }
  }

  void differentiate(int64_t first, int64_t count) const {
    const int64_t vocabulary = op_.vocabulary, width = op_.width;
    float* const gradient = logits_.floats();  // of the logits, in their place
    const int64_t block = block_rows(count, workspace_.threads);
    parallel_for(divide_up(count, block), workspace_.threads, [&](int64_t at) {
      for (int64_t i = at * block; i < std::min((at + 1) * block, count); ++i) {
        float* const row = gradient + i * vocabulary;
        const int64_t token = first + i;
        if (ignored(token))
          std::fill_n(row, vocabulary, 0.0f);
        else
          tokens_[i].logits.gradient(row, vocabulary, op_.labels[token], op_.weights ? op_.weights[token] : 1.0f, row);
      }
    });
    const float* const hidden = op_.hidden + first * width;
    if (op_.grad_hidden)
      multiply({gradient, vocabulary, 1}, {op_.unembedding, width, 1}, count, vocabulary, width, false,
               op_.grad_hidden + first * width, width, workspace_);
    if (op_.grad_unembedding)
      multiply({gradient, 1, vocabulary}, {hidden, width, 1}, vocabulary, count, width, true, op_.grad_unembedding,
               width, workspace_);
  }

  const LinearCrossEntropy& op_;
  const bool held_;
  const int64_t chunk_, slab_columns_;
  const Workspace workspace_;
  const Buffer logits_;
  const std::unique_ptr<Token[]> tokens_;
};

void run(const LinearCrossEntropy& op, int64_t offset_rows, int threads) {
  if (!op.offset)
    Chunks(op, threads).run();
  else if (op.tokens > 0)
    OffsetBlocks(op, offset_rows, threads).run();
}

}  // namespace

CrossEntropyStatus linear_cross_entropy(const LinearCrossEntropy& op, int threads) {
  const int64_t tokens = op.chains * op.tokens, unembedding = op.vocabulary * op.width;
  if (!labels_exist(op.labels, tokens, op.vocabulary, op.ignore_index)) return CrossEntropyStatus::bad_labels;
  if (op.grad_unembedding) std::fill_n(op.grad_unembedding, op.unembeddings * unembedding, 0.0f);
  LinearCrossEntropy part = op;
  if (op.unembeddings == 1) {
    part.tokens = tokens;  // chains that share an unembedding are one long chain
    run(part, op.offsets * op.tokens, threads);
  } else {
    for (int64_t chain = 0; chain < op.chains; ++chain) {
      const int64_t first = chain * op.tokens;
      part.hidden = op.hidden + first * op.width;
      part.unembedding = op.unembedding + chain * unembedding;
      part.labels = op.labels + first;
      part.losses = op.losses + first;
      if (op.weights) part.weights = op.weights + first;
      if (op.grad_hidden) part.grad_hidden = op.grad_hidden + first * op.width;
      if (op.grad_unembedding) part.grad_unembedding = op.grad_unembedding + chain * unembedding;
      if (op.offset) {
        if (op.offsets > 1) part.offset = op.offset + first * op.vocabulary;
        part.offset_scale = op.offset_scale + first;
      }
      if (op.grad_offset_scale) part.grad_offset_scale = op.grad_offset_scale + first;
      run(part, op.tokens, threads);
    }
  }
  return CrossEntropyStatus::done;
}

}  // namespace pf::PF_ISA
