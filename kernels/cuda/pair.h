// A neighbor as a thread reads it; the same arithmetic as kernels/native/center.h.
#pragma once

#include "env_row.h"
#include "moment_weights.h"
#include "radial_grid.h"

namespace dphpc {

// Arguments of the kernels, passed by value; their twins are in dphpc/ops/structs.py.
struct System {
    const double* positions;   // (n_all, 3)
    const int* types;          // (n_all)
    const long long* offsets;  // (n_local + 1)
    const int* indices;
    const int* centers;        // (n), one a block
};

struct Descriptor {
    SwitchParameters cut;
    double scale;
    const int* sel;              // (N_TYPES)
    const double* davg;          // (N_TYPES)
    const double* inverse_std;   // (N_TYPES, 2)
    const int* network;          // (N_TYPES, N_TYPES)
    const unsigned char* flags;  // (N_TYPES, N_TYPES)
    const RadialGrid* grids;     // (n_tables)
    const Real* coefficients;    // (n_tables, n_intervals, 6, CHANNELS)
    const Real* empty;           // (N_TYPES, N_TYPES, CHANNELS)
    int n_intervals;             // of the longest table
    int round_displacements;     // to float32 before anything is formed from them
};

constexpr unsigned char used = 1, counted = 2;  // flags, as in dphpc.model.descriptor

struct Pair {
    int neighbor, other;  // the atom and its type
    int interval;         // counted through all tables; −1 for a pair that adds nothing
    double x[3], v, ds_r, dv_r, inverse_step;  // row = (s, v·x); (ds/dr)/r and (dv/dr)/r; dt/ds
};

// What the channels need of a pair; one for each thread, in shared memory.
struct Terms {
    Real row[n_rows], t;
    int interval;
};

// From an atom to a neighbor, and the square of the distance.
__device__ inline double displacement(const System& system, const Descriptor& d, int atom, int neighbor, double* x) {
    double r2 = 0.0;
    for (int a = 0; a < 3; ++a) {
        x[a] = system.positions[3ll * neighbor + a] - system.positions[3ll * atom + a];
        if (d.round_displacements) x[a] = static_cast<float>(x[a]);
        r2 += x[a] * x[a];
    }
    return r2;
}

// What a pair inside the cutoff is, whose neighbor, its type, displacement and squared distance are given.
__device__ inline void form_pair(const Descriptor& d, int type, double r2, Pair& pair, Terms& terms, double& largest) {
    const double r = sqrt(r2), inverse_r = 1.0 / r;
    const double norm = d.inverse_std[2 * type], norm_xyz = d.inverse_std[2 * type + 1];
    const RadialParts<double> parts = radial_parts(r, d.cut);
    const double s = (parts.s - d.davg[type]) * norm;
    pair.v = parts.v * norm_xyz;
    pair.ds_r = parts.ds * norm * inverse_r;
    pair.dv_r = parts.dv * norm_xyz * inverse_r;
    const int table = d.network[type * N_TYPES + pair.other];
    double t;
    pair.interval = table * d.n_intervals + locate(d.grids[table], s, t, pair.inverse_step);
    terms.row[0] = static_cast<Real>(s);
    for (int a = 0; a < 3; ++a) terms.row[a + 1] = static_cast<Real>(pair.v * pair.x[a]);
    terms.t = static_cast<Real>(t);
    terms.interval = pair.interval;
    largest = s > largest ? s : largest;
}

// Reads the neighbor at `place` of an atom of `type`, whose largest s̃ it may raise.
__device__ inline void read_pair(const System& system, const Descriptor& d, int atom, int type, long long place,
                                 Pair& pair, Terms& terms, double& largest) {
    pair.neighbor = system.indices[place];
    pair.other = system.types[pair.neighbor];
    pair.interval = terms.interval = -1;
    const double r2 = displacement(system, d, atom, pair.neighbor, pair.x);
    if (r2 < d.cut.rcut * d.cut.rcut && d.flags[type * N_TYPES + pair.other] & used) form_pair(d, type, r2, pair, terms, largest);
}

}  // namespace dphpc
