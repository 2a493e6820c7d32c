// Kernels whose threads have one element each.
#pragma once

namespace dphpc {

__device__ inline long long my_element() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Where element i stands in rows of n; there are fewer than 2³², as a GPU divides 64 bits several times more slowly.
struct Place {
    long long row;
    int column;
};

__device__ inline Place place_of(long long i, int n) {
    const long long row = static_cast<unsigned>(i) / static_cast<unsigned>(n);
    return {row, static_cast<int>(i - row * n)};
}

}  // namespace dphpc
