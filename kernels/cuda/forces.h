// Forces of an atom's pairs, computed by one block.
#pragma once

#include "runs.h"

namespace dphpc {

struct Exerted {
    const Real* moments;         // (n, 4, CHANNELS)
    const Real* inputs_adjoint;  // (n, CHANNELS·AXIS + n_columns)
    Count* forces;               // (n_all, 3), added to, as are the following
    Count* virial;               // (n_slots, 9), to be summed over the slots
    Count* atom_virial;          // (n_all, 9), or null
    Count* too_large;            // set to 1 if a force leaves the range of its integer
    double per_spacing;          // multiples of the spacing in 1 eV/Å or 1 eV
    double limit;                // eV/Å
    int n_columns, n_slots;
};

constexpr int n_sums = n_rows + 1;  // ∂E/∂row, and Σ row·∂²E/∂row∂t

// Adds a pair's force and virial to the neighbor, and to `own`: the force on the center (3) and the virial (9).
__device__ inline void add_pair(const Descriptor& d, const Pair& pair, const Real* sums, const Exerted& out, Count* own) {
    double along = 0.0;
    for (int a = 0; a < 3; ++a) along += static_cast<double>(sums[a + 1]) * pair.x[a];
    const double by_s = sums[0] + sums[n_rows] * pair.inverse_step;
    const double radial = by_s * pair.ds_r + along * pair.dv_r;
    for (int a = 0; a < 3; ++a) {
        const double gradient = d.scale * (radial * pair.x[a] + pair.v * sums[a + 1]);  // ∂E/∂r
        if (!(fabs(gradient) < out.limit)) *out.too_large = 1;
        const Count force = __double2ll_rn(gradient * out.per_spacing);
        own[a] += force;
        add(out.forces + 3ll * pair.neighbor + a, -force);
        for (int c = 0; c < 3; ++c) {
            const Count virial = __double2ll_rn(-gradient * pair.x[c] * out.per_spacing);
            own[3 + 3 * a + c] += virial;
            if (out.atom_virial) add(out.atom_virial + 9ll * pair.neighbor + 3 * a + c, virial);
        }
    }
}

// ∂E/∂row and Σ row·∂²E/∂row∂t of a pair, from B (6, 4) of its run.
__device__ inline void form_pair_sums(const Terms& terms, const Real* by_run, Real* sums) {
    Real along = Real(0);
    for (int a = 0; a < n_rows; ++a) {
        Real slope;
        polynomial(terms.t, [&](int k) { return by_run[k * n_rows + a]; }, sums[a], slope);
        along += terms.row[a] * slope;
    }
    sums[n_rows] = along;
}

constexpr int n_own = 12;  // the force on the center and a virial

// Shared memory.
struct Exerting {
    Runs runs;
    Real by_run[most_runs * n_weights];
    Pair pairs[most_pairs];  // one for each thread; in registers they would compete with the sums over channels
};

// Adds the forces and virials of an atom's pairs, given ∂E/∂A (4, CHANNELS) in shared memory: to the neighbors, or to their
// owners if these are given, and to `own` (n_own) in shared memory.
__device__ inline void exert_pairs(const System& system, const Descriptor& d, int atom, const int* owners,
                                   const Real* adjoint, const Exerted& out, Exerting& room, Count* own) {
    __shared__ Near near;
    const int me = threadIdx.x;
    Reader reader(system, atom);
    Runs& runs = room.runs;
    const int slot = me < most_pairs ? me : 0;  // only the first n threads have a pair
    while (const int n = reader.gather(system, d, near, nullptr)) {
        int place;
        double unused = 0.0;
        const int n_runs = reader.order(system, d, n, near, runs, room.pairs[slot], place, unused);
        if (owners && me < n) room.pairs[me].neighbor = owners[room.pairs[me].neighbor];
        for (int first = 0; first < n_runs; first += most_runs) {
            const int n_here = n_runs - first < most_runs ? n_runs - first : most_runs;
            form_run_sums(runs, d, first, n_here, adjoint, room.by_run);
            __syncthreads();
            if (me - me % WARP < n) {  // warps without pairs have nothing to add
                Count mine[n_own] = {};
                const int run = me < n ? runs.keys[place] - first : -1;
                if (run >= 0 && run < n_here) {
                    Real sums[n_sums];
                    form_pair_sums(runs.terms[place], room.by_run + run * n_weights, sums);
                    add_pair(d, room.pairs[me], sums, out, mine);
                }
                const int begin = fold<WARP, n_own>(mine);
                if (keeps<WARP, n_own>())
                    for (int k = 0; k < folded(WARP, n_own); ++k) add(own + begin + k, mine[k]);
            }
            __syncthreads();
        }
        reader.let_go(n, near);
    }
}

}  // namespace dphpc
