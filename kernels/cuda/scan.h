// Exclusive prefix sums of a long array of counts; `running_sums` of dphpc/ops/gpu.py launches the kernels.
#pragma once

#include "block.h"

namespace dphpc {

// The sum over threads 0 … me of the block; afterwards the last element of `room` (BLOCK) is the sum over the block.
__device__ inline Count block_scan(Count value, Count* room) {
    const int me = threadIdx.x;
    room[me] = value;
    __syncthreads();
    for (int distance = 1; distance < BLOCK; distance *= 2) {
        const Count before = me >= distance ? room[me - distance] : 0;
        __syncthreads();
        room[me] += before;
        __syncthreads();
    }
    return room[me];
}

// out[i] = before + the sum of in[first … i − 1]; returns before + the sum of all.  `in` and `out` may be the same array.
template <class T>
__device__ inline Count scan(const T* in, long long first, long long last, Count before, Count* out) {
    __shared__ Count room[BLOCK];
    for (long long base = first; base < last; base += BLOCK) {
        const long long i = base + threadIdx.x;
        const Count value = i < last ? in[i] : 0;
        const Count sum = block_scan(value, room);
        if (i < last) out[i] = before + sum - value;
        before += room[BLOCK - 1];
        __syncthreads();  // before the next round writes to `room`
    }
    return before;
}

__device__ inline long long end_of_chunk(long long n, long long chunk) {
    const long long end = (blockIdx.x + 1ll) * chunk;
    return end < n ? end : n;
}

// out (n + 1) of counts (n), in one block: the sum before each count, and the sum of all.
extern "C" __global__ void __launch_bounds__(BLOCK)
scan_few(const int* counts, long long n, Count* out) {
    const Count sum = scan(counts, 0, n, 0, out);
    if (threadIdx.x == 0) out[n] = sum;
}

// The sum of each chunk of counts (n), one chunk for each block.
extern "C" __global__ void __launch_bounds__(BLOCK)
sum_chunks(const int* counts, long long n, long long chunk, Count* sums) {
    __shared__ Count room[BLOCK];
    Count sum = 0;
    for (long long i = blockIdx.x * chunk + threadIdx.x; i < end_of_chunk(n, chunk); i += BLOCK) sum += counts[i];
    sum = block_scan(sum, room);
    if (threadIdx.x == BLOCK - 1) sums[blockIdx.x] = sum;
}

// Replaces each of sums (n) by the sum of those before it; one block.
extern "C" __global__ void __launch_bounds__(BLOCK)
scan_sums(Count* sums, long long n) {
    scan(sums, 0, n, 0, sums);
}

// out (n + 1) of counts (n), given the sum of all chunks before each block's chunk.
extern "C" __global__ void __launch_bounds__(BLOCK)
scan_chunks(const int* counts, long long n, long long chunk, const Count* before, Count* out) {
    const Count sum = scan(counts, blockIdx.x * chunk, end_of_chunk(n, chunk), before[blockIdx.x], out);
    if (threadIdx.x == 0 && end_of_chunk(n, chunk) == n) out[n] = sum;
}

}  // namespace dphpc
