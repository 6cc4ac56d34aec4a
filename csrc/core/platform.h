// What differs between the compilers this core is built with.
#pragma once

#if defined(__CUDACC__)
#define PF_INLINE __host__ __device__ __forceinline__
#else
#define PF_INLINE inline __attribute__((always_inline))
#endif

// A loop of a few turns is written out.
#if defined(__CUDA_ARCH__)
#define PF_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define PF_UNROLL
#else
#define PF_UNROLL _Pragma("GCC unroll 8")
#endif

// One rounding, never a contraction the compiler chose: the same bits on every ISA, and on a GPU.
namespace pf {
#if defined(__CUDA_ARCH__)
PF_INLINE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
PF_INLINE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
PF_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
PF_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif
}  // namespace pf
