#include "linear_cross_entropy/linear_cross_entropy.h"

namespace pf::PF_ISA {
CrossEntropyStatus linear_cross_entropy(const LinearCrossEntropy&, int) { return CrossEntropyStatus::done; }
}
