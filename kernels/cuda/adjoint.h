// The backward pass from an atom's features to its moments, by one block.
#pragma once

#include "runs.h"

namespace dphpc {

constexpr int most_staged = (CHANNELS > 256 ? 512 : 2048) / (AXIS + 1);
constexpr int n_staged = most_staged < 1 ? 1 : most_staged < CHANNELS ? most_staged : CHANNELS;  // channels
constexpr int n_slices = BLOCK > AXIS ? BLOCK / AXIS : 1;

// In shared memory: moments, ∂E/∂D of some channels, and sums over slices of the channels.
struct Staging {
    alignas(16) Real moments[CHANNELS * n_rows];
    Real y[n_staged * (AXIS + 1)];  // rows are padded by one, against bank conflicts
    Real partial[n_slices * n_rows * AXIS];
};

// ∂E/∂A (4, CHANNELS) from y = ∂E/∂D (CHANNELS, AXIS), with D = Aᵀ·A[:, :AXIS]; ends with a barrier.
__device__ inline void form_moments_adjoint(const Real* moments, const Real* y, Staging& room, Real* adjoint) {
    const int me = threadIdx.x;
    for (int i = me; i < n_slices * n_rows * AXIS; i += BLOCK) room.partial[i] = Real(0);
    for (int i = me; i < n_rows * CHANNELS; i += BLOCK) room.moments[i % CHANNELS * n_rows + i / CHANNELS] = moments[i];
    for (int from = 0; from < CHANNELS; from += n_staged) {
        const int n = CHANNELS - from < n_staged ? CHANNELS - from : n_staged;
        __syncthreads();
        for (int i = me; i < n * AXIS; i += BLOCK) room.y[i + i / AXIS] = y[from * AXIS + i];
        __syncthreads();
        for (int m = me; m < n; m += BLOCK) {
            Real sum[n_rows] = {};
#pragma unroll 4
            for (int k = 0; k < AXIS; ++k) {
                const auto column = together<n_rows>(room.moments + n_rows * k);
                for (int a = 0; a < n_rows; ++a) sum[a] += room.y[m * (AXIS + 1) + k] * column.of[a];
            }
            for (int a = 0; a < n_rows; ++a) adjoint[a * CHANNELS + from + m] = sum[a];
        }
        for (int i = me; i < n_slices * AXIS; i += BLOCK) {
            const int slice = i / AXIS, k = i % AXIS;
            Real sum[n_rows] = {};
#pragma unroll 4
            for (int m = slice; m < n; m += n_slices) {
                const auto row = together<n_rows>(room.moments + n_rows * (from + m));
                for (int a = 0; a < n_rows; ++a) sum[a] += room.y[m * (AXIS + 1) + k] * row.of[a];
            }
            for (int a = 0; a < n_rows; ++a) room.partial[(slice * n_rows + a) * AXIS + k] += sum[a];
        }
    }
    __syncthreads();
    for (int i = me; i < n_rows * AXIS; i += BLOCK) {
        Real sum = Real(0);
        for (int slice = 0; slice < n_slices; ++slice) sum += room.partial[slice * (n_rows * AXIS) + i];
        adjoint[i / AXIS * CHANNELS + i % AXIS] += sum;
    }
    __syncthreads();
}

}  // namespace dphpc
