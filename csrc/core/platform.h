// What differs between the compilers this core is built with.
#pragma once

#if defined(__CUDACC__)
#define PF_INLINE __host__ __device__ __forceinline__
#else
#define PF_INLINE inline __attribute__((always_inline))
#endif

// One rounding, never a contraction the compiler chose: the same bits on every ISA.
namespace pf {
PF_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
PF_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
}  // namespace pf
