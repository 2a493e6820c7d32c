// The pairs of a block's atom in runs: those that share an interval of a table, whose coefficients are read once.
//
// Pairs of a run are summed before the channels on the way forward, and after them on the way back (moment_weights.h).
// A block takes up to `most_pairs` inside the cutoff at a time, one a thread; they are ordered by interval, and as the list
// has them within one, so that all sums have a fixed order.
#pragma once

#include "block.h"
#include "pair.h"

namespace dphpc {

constexpr int most_pairs = BLOCK < 128 ? BLOCK : 128;  // at hand at a time
constexpr int most_runs = 48;                          // of them, whose weights are at hand at a time

// A thread takes so many channels, in pieces of 16 bytes: threads side by side read pieces side by side.
constexpr int width = CHANNELS % 4 == 0 ? 4 : 1;
constexpr int piece = width == 4 ? 16 / sizeof(Real) : 1;
constexpr int n_slots = CHANNELS / width;

template <class T, int n>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Together {
    T of[n];
};

// Values that lie side by side, read at once.
template <int n, class T>
__device__ inline Together<T, n> together(const T* values) {
    return *reinterpret_cast<const Together<T, n>*>(values);
}

// In shared memory: pairs that were found inside the cutoff.
struct Near {
    int places[most_pairs + BLOCK];  // in the atom's list
    int counts[BLOCK / WARP];
};

// In shared memory: the pairs at hand.
struct Runs {
    Terms terms[most_pairs];           // in order
    alignas(16) int keys[most_pairs];  // of each pair its place in the order; later of each place its run
    int starts[most_pairs + 1];        // where each run begins
    int intervals[most_pairs];         // of each run
};

// How many of the block's threads before this one say so, and in `total` how many of all.
__device__ inline int count_before(bool so, int* counts, int& total) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned long long lanes = lanes_where(so);
    if (lane == 0) counts[warp] = __popcll(lanes);
    __syncthreads();
    int before = __popcll(lanes & ((1ull << lane) - 1));
    total = 0;
    for (int w = 0; w < BLOCK / WARP; ++w) {
        if (w < warp) before += counts[w];
        total += counts[w];
    }
    __syncthreads();  // before others are counted
    return before;
}

// A block's atom and how far its list has been read.
struct Reader {
    int atom, type;
    const int* neighbors;
    int size, next, pending;  // of the list; pairs found that have not been taken

    __device__ Reader(const System& system, int atom)
        : atom(atom), type(system.types[atom]), neighbors(system.indices + system.offsets[atom]),
          size(static_cast<int>(system.offsets[atom + 1] - system.offsets[atom])), next(0), pending(0) {}

    // Looks for pairs inside the cutoff until there are `most_pairs` or no more; returns how many are at hand.  Slots
    // that they take in a descriptor, where those are counted, are no longer free.
    __device__ int gather(const System& system, const Descriptor& d, Near& near, int* free_slots) {
        while (pending < most_pairs && next < size) {
            const int place = next + static_cast<int>(threadIdx.x);
            bool inside = false;
            if (place < size) {
                const int neighbor = neighbors[place], other = system.types[neighbor];
                const unsigned char flags = d.flags[type * N_TYPES + other];
                double x[3];
                inside = displacement(system, d, atom, neighbor, x) < d.cut.rcut * d.cut.rcut;
                if (inside && free_slots && flags & counted) atomicAdd(&free_slots[other], -1);
                inside = inside && flags & used;
            }
            int total;
            const int before = count_before(inside, near.counts, total);
            if (inside) near.places[pending + before] = place;
            pending += total;
            next += BLOCK;
        }
        __syncthreads();
        return pending < most_pairs ? pending : most_pairs;
    }

    // Lets go of the n pairs at hand.
    __device__ void let_go(int n, Near& near) {
        pending -= n;
        if (!pending) return;
        const int later = static_cast<int>(threadIdx.x) < pending ? near.places[n + threadIdx.x] : 0;
        __syncthreads();
        near.places[threadIdx.x] = later;
        __syncthreads();
    }

    // Reads the n pairs at hand, one a thread, and orders them; returns the number of runs.  This thread's pair is in
    // `pair`, its terms at `place`, its run is runs.keys[place].
    __device__ int order(const System& system, const Descriptor& d, int n, Near& near, Runs& runs, Pair& pair, int& place,
                         double& largest) const {
        const int me = threadIdx.x;
        Terms mine;
        if (me < most_pairs) runs.keys[me] = 0x7fffffff;  // behind all others
        if (me < n) {
            pair.neighbor = neighbors[near.places[me]];
            pair.other = system.types[pair.neighbor];
            form_pair(d, type, displacement(system, d, atom, pair.neighbor, pair.x), pair, mine, largest);
            runs.keys[me] = mine.interval * most_pairs + me;  // by interval, then as in the list
        }
        __syncthreads();
        place = 0;
        if (me < n) {
            const int key = runs.keys[me];
            for (int q = 0; q < n; q += 4) {
                const Together<int, 4> others = together<4>(runs.keys + q);
                for (int i = 0; i < 4; ++i) place += others.of[i] < key;
            }
            runs.terms[place] = mine;
        }
        __syncthreads();
        const bool begins = me < n && (me == 0 || runs.terms[me].interval != runs.terms[me - 1].interval);
        int n_runs;
        const int before = count_before(begins, near.counts, n_runs);
        if (begins) runs.starts[before] = me, runs.intervals[before] = runs.terms[me].interval;
        if (me < n) runs.keys[me] = before - !begins;
        if (me == 0) runs.starts[n_runs] = n;
        __syncthreads();
        return n_runs;
    }
};

__device__ inline const Real* coefficients_of(const Runs& runs, const Descriptor& d, int run) {
    return d.coefficients + static_cast<long long>(runs.intervals[run]) * (n_powers * CHANNELS);
}

// Σ row·t^k over each of n runs, (n, 6, 4).
__device__ inline void form_weights(const Runs& runs, int first, int n, Real* weights) {
    for (int i = threadIdx.x; i < n * n_rows; i += BLOCK) {
        const int run = i / n_rows, row = i % n_rows, end = runs.starts[first + run + 1];
        Real sum[n_powers] = {};
        for (int p = runs.starts[first + run]; p < end; ++p) {
            Real term = runs.terms[p].row[row];
            const Real t = runs.terms[p].t;
#pragma unroll
            for (int k = 0; k < n_powers; ++k) sum[k] += term, term *= t;
        }
#pragma unroll
        for (int k = 0; k < n_powers; ++k) weights[run * n_weights + k * n_rows + row] = sum[k];
    }
}

// Moments of some channels, of which each thread has what some of the runs add: groups of threads share the runs.
struct Moments {
    static constexpr int n_groups = BLOCK > n_slots ? BLOCK / n_slots : 1;
    static constexpr int n_turns = (n_slots + BLOCK - 1) / BLOCK;
    Real sum[n_turns][n_rows][width] = {};

    // The first channel of a turn; beyond the last for threads that have none.  Pieces are n_slots pieces apart.
    __device__ static int channel(int turn) {
        const int slot = n_groups == 1 ? static_cast<int>(threadIdx.x) + turn * BLOCK : threadIdx.x % n_slots;
        return slot < n_slots && group() < n_groups ? slot * piece : CHANNELS;
    }

    __device__ static int group() { return n_groups == 1 ? 0 : threadIdx.x / n_slots; }

    __device__ void add(const Runs& runs, const Descriptor& d, int first, int n, const Real* weights) {
#pragma unroll
        for (int turn = 0; turn < n_turns; ++turn) {
            const int m = channel(turn);
            if (m >= CHANNELS) continue;
            for (int run = group(); run < n; run += n_groups) {
                const Real *c = coefficients_of(runs, d, first + run) + m, *w = weights + run * n_weights;
#pragma unroll
                for (int k = 0; k < n_powers; ++k) {
                    const auto by_row = together<n_rows>(w + k * n_rows);
#pragma unroll
                    for (int from = 0; from < width; from += piece) {
                        const auto g = together<piece>(c + k * CHANNELS + from * n_slots);
#pragma unroll
                        for (int a = 0; a < n_rows; ++a)
#pragma unroll
                            for (int i = 0; i < piece; ++i) sum[turn][a][from + i] += by_row.of[a] * g.of[i];
                    }
                }
            }
        }
    }

    // partial (n_groups, 4, CHANNELS) is set.
    __device__ void lay_down(Real* partial) const {
#pragma unroll
        for (int turn = 0; turn < n_turns; ++turn) {
            const int m = channel(turn);
            if (m >= CHANNELS) continue;
#pragma unroll
            for (int a = 0; a < n_rows; ++a)
#pragma unroll
                for (int i = 0; i < width; ++i)
                    partial[(group() * n_rows + a) * CHANNELS + m + i / piece * piece * n_slots + i % piece] = sum[turn][a][i];
        }
    }
};

__host__ __device__ constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

// Lanes that share the channels of a run: so many that an atom's runs are at hand at once, and no more, as the sum over lanes
// costs as much for one run as for eight.
constexpr int usual_runs = sizeof(Real) == 8 ? 32 : 16;  // in water 27, and 13 with float32's coarser table
constexpr int n_pieces = CHANNELS / piece, most_lanes = BLOCK / usual_runs;
constexpr int run_lanes = power_of_two(n_pieces) < most_lanes ? power_of_two(n_pieces) : most_lanes;

// B (n, 6, 4) of each of n runs: Σ_m c_k[m]·Ā[a][m].
__device__ inline void form_run_sums(const Runs& runs, const Descriptor& d, int first, int n, const Real* adjoint,
                                     Real* by_run) {
    constexpr int n_groups = BLOCK / run_lanes, n_left = folded(run_lanes, n_weights);
    const int me = threadIdx.x, lane = me % run_lanes;
    for (int base = 0; base + (me - me % WARP) / run_lanes < n; base += n_groups) {
        const int run = base + me / run_lanes;
        Real sum[n_weights] = {};
        if (run < n) {
            const Real* c = coefficients_of(runs, d, first + run);
            for (int p = lane; p < n_pieces; p += run_lanes) {
                Together<Real, piece> bar[n_rows];
#pragma unroll
                for (int a = 0; a < n_rows; ++a) bar[a] = together<piece>(adjoint + a * CHANNELS + p * piece);
#pragma unroll
                for (int k = 0; k < n_powers; ++k) {
                    const auto g = together<piece>(c + k * CHANNELS + p * piece);
#pragma unroll
                    for (int a = 0; a < n_rows; ++a)
#pragma unroll
                        for (int i = 0; i < piece; ++i) sum[k * n_rows + a] += g.of[i] * bar[a].of[i];
                }
            }
        }
        const int mine = fold<run_lanes, n_weights>(sum);
        if (run < n && keeps<run_lanes, n_weights>()) {
            Real* out = by_run + run * n_weights + mine;
#pragma unroll
            for (int i = 0; i < n_left; ++i) out[i] = sum[i];
        }
    }
}

}  // namespace dphpc
