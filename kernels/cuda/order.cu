// A stable radix sort of integers, one digit after the other from the lowest; `stable_order` of dphpc/ops/gpu.py launches
// the kernels.
//
// Defined in front of this text: Key, WARP and BLOCK.  A block has BLOCK keys, in the order by the digits so far.
#include "scan.h"

namespace dphpc {

constexpr int digit_bits = 4, n_digits = 1 << digit_bits;

__device__ inline int digit_of(Key key, int shift) { return static_cast<int>(key >> shift & (n_digits - 1)); }

// counts (n_digits, n_blocks): how many keys of each block have each digit.
extern "C" __global__ void __launch_bounds__(BLOCK)
count_digits(int n, const Key* keys, const int* order, int shift, int* counts) {
    __shared__ int mine[n_digits];
    const long long i = my_place();
    for (int d = threadIdx.x; d < n_digits; d += BLOCK) mine[d] = 0;
    __syncthreads();
    if (i < n) atomicAdd(mine + digit_of(keys[order ? order[i] : i], shift), 1);
    __syncthreads();
    for (int d = threadIdx.x; d < n_digits; d += BLOCK) counts[d * gridDim.x + blockIdx.x] = mine[d];
}

// next (n): the order by this digit, too; `starts` are the prefix sums of all counts.
extern "C" __global__ void __launch_bounds__(BLOCK)
place_digits(int n, const Key* keys, const int* order, int shift, const Count* starts, int* next) {
    __shared__ int of_warp[BLOCK / WARP][n_digits];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const long long i = my_place();
    for (int k = threadIdx.x; k < BLOCK / WARP * n_digits; k += BLOCK) of_warp[k / n_digits][k % n_digits] = 0;
    const int key = i < n ? order ? order[i] : static_cast<int>(i) : 0;
    const int digit = i < n ? digit_of(keys[key], shift) : 0;
    unsigned long long alike = lanes_where(i < n);  // lanes of the warp with the same digit
    for (int bit = 0; bit < digit_bits; ++bit) {
        const unsigned long long lanes = lanes_where(digit >> bit & 1);
        alike &= digit >> bit & 1 ? lanes : ~lanes;
    }
    int before = __popcll(alike & ((1ull << lane) - 1));
    __syncthreads();
    if (i < n && before == 0) of_warp[warp][digit] = __popcll(alike);
    __syncthreads();
    if (i >= n) return;
    for (int w = 0; w < warp; ++w) before += of_warp[w][digit];
    next[starts[digit * gridDim.x + blockIdx.x] + before] = key;
}

}  // namespace dphpc
