// What the threads of a block do together.  WARP, their number in step, is 32, or 64 on some of AMD's cards.
#pragma once

namespace dphpc {

using Count = long long;  // whole multiples of a spacing: their sums are exact in any order

template <class T>
__device__ inline T lane_below(T value, int distance) {
#if defined(__HIP_PLATFORM_AMD__)
    return __shfl_down(value, distance);
#else
    return __shfl_down_sync(0xffffffffu, value, distance);
#endif
}

// The sum over a warp, on its first lane; added up in the same order every time.
template <class T>
__device__ inline T warp_sum(T value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += lane_below(value, distance);
    return value;
}

// The largest of a block's values, on its first thread; `room` holds one for each warp.
__device__ inline double block_max(double value, double* room) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const double other = lane_below(value, distance);
        value = other > value ? other : value;
    }
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = value;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int w = 1; w < BLOCK / WARP; ++w) value = room[w] > value ? room[w] : value;
    return value;
}

__device__ inline void add(Count* sum, Count value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

}  // namespace dphpc
