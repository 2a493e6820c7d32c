// The moments of an atom, computed by one block.
#pragma once

#include "runs.h"

namespace dphpc {

// Shared memory that is used for one purpose after the other.
union Describing {
    struct {
        Runs runs;
        alignas(16) Real weights[most_runs * n_weights];
    } pairs;
    Real partial[Moments::n_groups * n_rows * CHANNELS];
};

// Adds the shares of an atom's pairs to moments (CHANNELS, 4) in shared memory.  For each thread with a pair `prepare` is
// called with the pair and its place in the order; then `weigh(first, n, weights)` sets the weights of n runs.
template <class Prepare, class Weigh>
__device__ inline void add_pairs(const System& system, const Descriptor& d, Reader& reader, Near& near, Describing& room,
                                 int* free_slots, double& largest, Real* moments, const Prepare& prepare,
                                 const Weigh& weigh) {
    const int me = threadIdx.x;
    Runs& runs = room.pairs.runs;
    while (const int n = reader.gather(system, d, near, free_slots)) {
        Pair pair;
        int place;
        const int n_runs = reader.order(system, d, n, near, runs, pair, place, largest);
        if (me < n) prepare(pair, place);
        Moments sums;
        for (int first = 0; first < n_runs; first += most_runs) {
            const int n_here = n_runs - first < most_runs ? n_runs - first : most_runs;
            weigh(first, n_here, room.pairs.weights);
            __syncthreads();
            sums.add(runs, d, first, n_here, room.pairs.weights);
            __syncthreads();
        }
        sums.lay_down(room.partial);
        __syncthreads();
        for (int i = me; i < n_rows * CHANNELS; i += BLOCK)
            for (int group = 0; group < Moments::n_groups; ++group)
                moments[i % CHANNELS * n_rows + i / CHANNELS] += room.partial[group * (n_rows * CHANNELS) + i];
        reader.let_go(n, near);
        __syncthreads();
    }
}

// Sets the scaled moments (CHANNELS, 4) of an atom in shared memory (a barrier is needed before they are read), the same as
// (4, CHANNELS) in `kept`, and its largest s̃, −∞ without pairs.  Returns the number of free slots of each type, in shared
// memory.
__device__ inline const int* form_moments(const System& system, const Descriptor& d, int atom, Real* moments, Real* kept,
                                          double* largest_of) {
    __shared__ Describing room;
    __shared__ Near near;
    __shared__ double maxima[BLOCK / WARP];
    __shared__ int free_slots[N_TYPES];
    const int me = threadIdx.x;
    Reader reader(system, atom);
    const bool with_empty = d.davg[reader.type] != 0.0;  // otherwise a missing slot is a row of zeros
    for (int t = me; t < N_TYPES; t += BLOCK) free_slots[t] = d.sel[t];
    for (int i = me; i < n_rows * CHANNELS; i += BLOCK) moments[i] = Real(0);
    __syncthreads();
    double largest = -1.0 / 0.0;
    add_pairs(
        system, d, reader, near, room, with_empty ? free_slots : nullptr, largest, moments, [](const Pair&, int) {},
        [&](int first, int n, Real* weights) { form_weights(room.pairs.runs, first, n, weights); });
    largest = block_max(largest, maxima);
    if (me == 0) *largest_of = largest;
    for (int i = me; i < n_rows * CHANNELS; i += BLOCK) {
        Real& sum = moments[i % CHANNELS * n_rows + i / CHANNELS];
        for (int t = 0; with_empty && i < CHANNELS && t < N_TYPES; ++t)
            sum += static_cast<Real>(free_slots[t]) * d.empty[(reader.type * N_TYPES + t) * CHANNELS + i];
        kept[i] = sum *= static_cast<Real>(d.scale);
    }
    return free_slots;
}

}  // namespace dphpc
