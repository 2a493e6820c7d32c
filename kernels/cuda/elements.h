// For kernels with one element for each thread.
#pragma once

namespace dphpc {

__device__ inline long long my_element() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Row and column of element i in rows of n; i is below 2³², as GPUs divide 64-bit numbers several times more slowly.
struct Place {
    long long row;
    int column;
};

__device__ inline Place place_of(long long i, int n) {
    const long long row = static_cast<unsigned>(i) / static_cast<unsigned>(n);
    return {row, static_cast<int>(i - row * n)};
}

}  // namespace dphpc
