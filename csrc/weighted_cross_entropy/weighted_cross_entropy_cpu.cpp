#include "weighted_cross_entropy/weighted_cross_entropy.h"

namespace pf::PF_ISA {
CrossEntropyStatus weighted_cross_entropy(const WeightedCrossEntropy&, int) { return CrossEntropyStatus::done; }
}
