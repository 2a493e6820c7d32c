// Warp and block operations.  WARP, the number of threads of a warp, is 32, or 64 on some of AMD's GPUs.
#pragma once

namespace dphpc {

using Count = long long;  // integer multiples of a spacing, whose sums are exact in any order

// This thread's index in the grid, and the grid's size.
__device__ inline long long my_place() { return static_cast<long long>(blockIdx.x) * BLOCK + threadIdx.x; }
__device__ inline long long n_threads() { return static_cast<long long>(gridDim.x) * BLOCK; }

template <class T>
__device__ inline T lane_below(T value, int distance) {
#if defined(__HIP__)
    return __shfl_down(value, distance);
#else
    return __shfl_down_sync(0xffffffffu, value, distance);
#endif
}

template <class T>
__device__ inline T lane_across(T value, int distance) {
#if defined(__HIP__)
    return __shfl_xor(value, distance);
#else
    return __shfl_xor_sync(0xffffffffu, value, distance);
#endif
}

// Ballot: bit i tells whether the condition is true on lane i.
__device__ inline unsigned long long lanes_where(bool so) {
#if defined(__HIP__)
    return __ballot(so);
#else
    return __ballot_sync(0xffffffffu, so);
#endif
}

// The sum over a warp, on its first lane, in a fixed order.
template <class T>
__device__ inline T warp_sum(T value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += lane_below(value, distance);
    return value;
}

// The largest of a warp's values, on its first lane.
template <class T>
__device__ inline T warp_max(T value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const T other = lane_below(value, distance);
        value = other > value ? other : value;
    }
    return value;
}

// The largest of a block's values, on its first thread; `room` is shared memory with one number for each warp.
__device__ inline double block_max(double value, double* room) {
    value = warp_max(value);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = value;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int w = 1; w < BLOCK / WARP; ++w) value = room[w] > value ? room[w] : value;
    return value;
}

// One of two elements of an array in registers.  Without this function clang selects between their addresses, for which it
// keeps the array in memory.
template <class T>
__device__ inline T either(bool first, const T& a, const T& b) {
    return first ? a : b;
}

// Sums of n values over each group of `lanes` neighboring lanes.  In each step, if n is even, one half of the lanes goes on
// with one half of the values.  In the end a lane has the sums of `folded(lanes, n)` values, the first of which is returned;
// among lanes with the same values, `keeps` is true on the first.
template <int lanes, int n, class T>
__device__ inline int fold(T* values) {
    if constexpr (lanes == 1) {
        return 0;
    } else {
        constexpr int distance = lanes / 2;
        if constexpr (n % 2) {
#pragma unroll
            for (int i = 0; i < n; ++i) values[i] += lane_across(values[i], distance);
            return fold<distance, n>(values);
        } else {
            constexpr int half = n / 2;
            const bool upper = threadIdx.x & distance;
#pragma unroll
            for (int i = 0; i < half; ++i) {
                const T given = either(upper, values[i], values[i + half]);
                const T kept = either(upper, values[i + half], values[i]);
                values[i] = kept + lane_across(given, distance);
            }
            return (upper ? half : 0) + fold<distance, half>(values);
        }
    }
}

__host__ __device__ constexpr int folded(int lanes, int n) {
    return lanes == 1 ? n : folded(lanes / 2, n % 2 ? n : n / 2);
}

__host__ __device__ constexpr int same_lanes(int lanes, int n) {
    return lanes == 1 ? 1 : n % 2 ? lanes : same_lanes(lanes / 2, n / 2);
}

template <int lanes, int n>
__device__ inline bool keeps() {
    return threadIdx.x % same_lanes(lanes, n) == 0;
}

__device__ inline void add(Count* sum, Count value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

}  // namespace dphpc
