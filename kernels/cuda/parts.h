// Rows of a factor of a matrix product: the numbers themselves (PARTS 1), or float32 in pieces that TF32 holds exactly.
//
// With PARTS 3 a row has its high pieces, its low pieces and its high pieces once more, to meet high, high and low pieces
// of the other factor: high·high + low·high + high·low misses low·low alone, 2⁻²² of the product.
#pragma once

namespace dphpc {

__device__ inline void lay_parts(Real* row, int n, int column, Real value) {
#if PARTS == 3
    const float high = __uint_as_float(__float_as_uint(value) & 0xffffe000u);  // 11 significant bits
    row[column] = row[column + 2 * n] = high;
    row[column + n] = value - high;
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
