// Sums over atoms that are exact in any order of threads, blocks and ranks.
#pragma once

#include "block.h"
#include "exact_sum.h"

namespace dphpc {

// Threads that stride over atoms.
__device__ inline long long my_first() { return static_cast<long long>(blockIdx.x) * BLOCK + threadIdx.x; }
__device__ inline long long n_threads() { return static_cast<long long>(gridDim.x) * BLOCK; }

// Adds what a warp's threads have to the sum of all; all of the warp take part.
__device__ inline void add_parts(const ExactSum& own, double* sum) {
    for (int k = 0; k < ExactSum::parts; ++k) {
        const double total = warp_sum(own.part[k]);
        if (threadIdx.x % WARP == 0 && total != 0.0) atomicAdd(sum + k, total);
    }
}

}  // namespace dphpc
