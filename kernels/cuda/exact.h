// Arithmetic with the same bits as NumPy: a product is rounded before it is added (no fused multiply-add).
#pragma once

namespace dphpc {

#if defined(__HIP__)
#pragma clang fp contract(off)
__device__ inline double times(double a, double b) { return a * b; }
__device__ inline double plus(double a, double b) { return a + b; }
#else
__device__ inline double times(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double plus(double a, double b) { return __dadd_rn(a, b); }
#endif

// a·b, summed from the first component to the third; b's components are `stride` apart.
__device__ inline double dot(const double* a, const double* b, int stride) {
    return plus(plus(times(a[0], b[0]), times(a[1], b[stride])), times(a[2], b[2 * stride]));
}

}  // namespace dphpc
