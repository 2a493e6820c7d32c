// Sums over atoms that are exact in any order of threads, blocks and ranks.
#pragma once

#include "block.h"
#include "exact_sum.h"

namespace dphpc {

// Adds the sums of a warp's threads to the total; to be called by all threads of the warp.
__device__ inline void add_parts(const ExactSum& own, double* sum) {
    for (int k = 0; k < ExactSum::parts; ++k) {
        const double total = warp_sum(own.part[k]);
        if (threadIdx.x % WARP == 0 && total != 0.0) atomicAdd(sum + k, total);
    }
}

// Adds the sums of the first threads of a block's warps to the total; to be called by the whole block.
__device__ inline void add_warps_parts(const ExactSum& own, double* sum) {
    __shared__ double room[ExactSum::parts][BLOCK / WARP];
    const int k = threadIdx.x;
    if (k % WARP == 0)
        for (int part = 0; part < ExactSum::parts; ++part) room[part][k / WARP] = own.part[part];
    __syncthreads();
    if (k >= ExactSum::parts) return;
    double total = 0.0;
    for (int w = 0; w < BLOCK / WARP; ++w) total += room[k][w];
    if (total != 0.0) atomicAdd(sum + k, total);
}

}  // namespace dphpc
