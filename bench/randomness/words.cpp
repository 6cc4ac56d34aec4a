// The random words of the library, as noise draws them, to standard output:
//   c++ -O3 -std=c++17 -Icsrc bench/randomness/words.cpp -o words && ./words | dieharder -a -g 200 -k 2
// Neighbouring places follow one another: all indices of a chain, all chains of a step, then the next step.
#include <cstdio>
#include <vector>

#include "core/philox.h"

int main() {
  constexpr uint64_t seed = 20261121, chains = 64, blocks = 1024;
  std::vector<pf::Words4> words(blocks);
  for (uint64_t step = 0;; ++step)
    for (uint64_t chain = 0; chain < chains; ++chain) {
      for (uint64_t index = 0; index < blocks; ++index)
        words[index] = pf::philox4x32(pf::counter(pf::Stream::noise, chain, step, index), uint32_t(seed), uint32_t(seed >> 32));
      if (std::fwrite(words.data(), sizeof words[0], blocks, stdout) != blocks) return 0;
    }
}
