// Sums over the threads of a block, in an order that never changes.
#pragma once

namespace pf::cuda {

// values of thread 0 <- their sums over the block's `threads`, all of which call this; `partial` is free again after
// the next barrier.
template <int threads, int count>
__device__ void block_sum(double (&values)[count], double (&partial)[threads / 32][count]) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] += __shfl_down_sync(0xFFFFFFFFu, values[i], offset);
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int i = 0; i < count; ++i) partial[threadIdx.x / 32][i] = values[i];
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < threads / 32; ++warp)
#pragma unroll
      for (int i = 0; i < count; ++i) values[i] += partial[warp][i];
}

}  // namespace pf::cuda
