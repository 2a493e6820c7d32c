// Functions that the host compiler and NVRTC both compile.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(__HIPCC__)
#define DPHPC_HD __host__ __device__ __forceinline__
#else
#define DPHPC_HD inline __attribute__((always_inline))
#endif

// NVRTC knows memcpy without a header, and not by the host compilers' name.
#if defined(__CUDACC_RTC__)
#define DPHPC_MEMCPY memcpy
#else
#define DPHPC_MEMCPY __builtin_memcpy
#endif
