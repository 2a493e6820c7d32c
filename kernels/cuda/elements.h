// Kernels whose threads have one element each.
#pragma once

namespace dphpc {

__device__ inline long long my_element() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Where element i stands in rows of n.
struct Place {
    long long row;
    int column;
};

__device__ inline Place place_of(long long i, int n) {
    // In 64 bits a card divides several times more slowly.
    const long long row = i >> 32 ? i / n : static_cast<unsigned>(i) / static_cast<unsigned>(n);
    return {row, static_cast<int>(i - row * n)};
}

}  // namespace dphpc
