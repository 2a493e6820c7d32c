// Rows of a factor of a matrix product: the numbers themselves (PARTS 1), or float32 in pieces that TF32 holds exactly.
//
// With PARTS 3 a row has its low pieces and twice its high pieces, to meet high, low and high pieces of the other factor:
// low·high + high·low + high·high misses low·low alone, 2⁻²² of the product.  What is small comes first, as tensor cores
// cut off what a sum cannot hold.
#pragma once

namespace dphpc {

__device__ inline void lay_parts(Real* row, int n, int column, Real value) {
#if PARTS == 3
    const float high = __uint_as_float(__float_as_uint(value) & 0xffffe000u);  // 11 significant bits
    row[column] = value - high;
    row[column + n] = row[column + 2 * n] = high;
#else
    (void)n;
    row[column] = value;
#endif
}

__device__ inline Real whole(const Real* row, int n, int column) {
#if PARTS == 3
    return row[column] + row[column + n];
#else
    (void)n;
    return row[column];
#endif
}

}  // namespace dphpc
