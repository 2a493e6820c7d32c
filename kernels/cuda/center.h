// What the threads of a block do for one atom; described in descriptor.cu.
#pragma once

#include "block.h"
#include "pair.h"

namespace dphpc {

struct Exerted {
    const Real* moments;         // (n, 4, CHANNELS)
    const Real* inputs_adjoint;  // (n, CHANNELS·AXIS + n_columns)
    Count* forces;               // (n_all, 3), is added to, as are the others
    Count* virial;               // (n_slots, 9), to be summed over the slots
    Count* atom_virial;          // (n_all, 9), or null
    Count* too_large;            // is set where a force leaves the range of its whole number
    double per_spacing;          // multiples of the spacing in 1 eV/Å or 1 eV
    double limit;                // eV/Å
    int n_columns, n_slots;
};

__device__ inline const Real* coefficients_of(const Descriptor& d, int interval) {
    return d.coefficients + static_cast<long long>(interval) * (n_powers * CHANNELS);
}

// Moments += what n pairs add, each thread for channels of its own.
__device__ inline void add_moments(const Descriptor& d, const Terms* terms, int n, Real* moments) {
    for (int m = threadIdx.x; m < CHANNELS; m += BLOCK) {
        Real sum[n_rows];
        for (int a = 0; a < n_rows; ++a) sum[a] = moments[a * CHANNELS + m];
        for (int p = 0; p < n; ++p) {
            if (terms[p].interval < 0) continue;
            const Real* c = coefficients_of(d, terms[p].interval) + m;
            const Real g = polynomial<Real>(terms[p].t, [&](int k) { return c[k * CHANNELS]; });
            for (int a = 0; a < n_rows; ++a) sum[a] += terms[p].row[a] * g;
        }
        for (int a = 0; a < n_rows; ++a) moments[a * CHANNELS + m] = sum[a];
    }
}

// The moments of a block's atom, scaled: in shared memory, which has to be met before others' channels are read, and in
// `kept`; and its largest s̃, −∞ without pairs.  Returns how many slots of each type are free, in shared memory.
__device__ inline const int* form_moments(const System& system, const Descriptor& d, Real* moments, Real* kept,
                                          double* largest_of) {
    __shared__ Terms terms[BLOCK];
    __shared__ double room[BLOCK / WARP];
    __shared__ int free_slots[N_TYPES];
    const int me = threadIdx.x, atom = system.centers[blockIdx.x], type = system.types[atom];
    const bool with_empty = d.davg[type] != 0.0;  // otherwise a missing slot is a row of zeros
    for (int i = me; i < n_rows * CHANNELS; i += BLOCK) moments[i] = Real(0);
    for (int t = me; t < N_TYPES; t += BLOCK) free_slots[t] = d.sel[t];
    double largest = -1.0 / 0.0;
    const long long last = system.offsets[atom + 1];
    for (long long first = system.offsets[atom]; first < last; first += BLOCK) {
        __syncthreads();
        if (first + me < last) {
            Pair pair;
            read_pair(system, d, atom, type, first + me, pair, terms[me], largest);
            if (with_empty && pair.inside && d.flags[type * N_TYPES + pair.other] & counted)
                atomicAdd(&free_slots[pair.other], -1);
        }
        __syncthreads();
        add_moments(d, terms, last - first < BLOCK ? static_cast<int>(last - first) : BLOCK, moments);
    }
    largest = block_max(largest, room);  // all threads have met there: the slots and, without pairs, zeros are written
    if (me == 0) *largest_of = largest;
    for (int m = me; m < CHANNELS; m += BLOCK) {
        if (with_empty)
            for (int t = 0; t < N_TYPES; ++t)
                moments[m] += static_cast<Real>(free_slots[t]) * d.empty[(type * N_TYPES + t) * CHANNELS + m];
        for (int i = m; i < n_rows * CHANNELS; i += CHANNELS) kept[i] = moments[i] *= static_cast<Real>(d.scale);
    }
    return free_slots;
}

// ∂E/∂A (4, CHANNELS) from y = ∂E/∂D (CHANNELS, AXIS), with D = Aᵀ·A[:, :AXIS].
__device__ inline void form_moments_adjoint(const Real* moments, const Real* y, Real* adjoint) {
    for (int m = threadIdx.x; m < CHANNELS; m += BLOCK) {
        Real sum[n_rows] = {};
#pragma unroll 4  // of all at once the kernel would need 168 registers in place of 96
        for (int k = 0; k < AXIS; ++k)
            for (int a = 0; a < n_rows; ++a) sum[a] += y[m * AXIS + k] * moments[a * CHANNELS + k];
        for (int a = 0; a < n_rows; ++a) adjoint[a * CHANNELS + m] = sum[a];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n_rows * AXIS; i += BLOCK) {
        const Real* row = moments + i / AXIS * CHANNELS;
        Real sum = Real(0);
        for (int m = 0; m < CHANNELS; ++m) sum += y[m * AXIS + i % AXIS] * row[m];
        adjoint[i / AXIS * CHANNELS + i % AXIS] += sum;
    }
}

constexpr int n_sums = n_rows + 1;  // ∂E/∂row, and Σ row·∂²E/∂row∂t

// `sums` of n pairs, each by a warp, whose lanes share the channels.
__device__ inline void form_sums(const Descriptor& d, const Terms* terms, int n, const Real* adjoint,
                                 Real (*sums)[n_sums]) {
    const int lane = threadIdx.x % WARP;
    for (int p = threadIdx.x / WARP; p < n; p += BLOCK / WARP) {
        const Terms& pair = terms[p];
        if (pair.interval < 0) continue;
        const Real* coefficients = coefficients_of(d, pair.interval);
        Real sum[n_sums] = {};
        for (int m = lane; m < CHANNELS; m += WARP) {
            Real g, slope, along = Real(0);
            polynomial(pair.t, [&](int k) { return coefficients[k * CHANNELS + m]; }, g, slope);
            for (int a = 0; a < n_rows; ++a) {
                const Real bar = adjoint[a * CHANNELS + m];
                sum[a] += g * bar;
                along += pair.row[a] * bar;
            }
            sum[n_rows] += slope * along;
        }
        for (int k = 0; k < n_sums; ++k) {
            const Real total = warp_sum(sum[k]);
            if (lane == 0) sums[p][k] = total;
        }
    }
}

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

}  // namespace dphpc
