// The se_e2_a descriptor and the way back to forces, one block an atom; formulas in dphpc/ops/se_a/contract.py.
//
// Defined in front of this text, for one model: Real, CHANNELS, AXIS, N_TYPES, WARP and BLOCK.  Threads first read one
// neighbor each, then share the channels, so that neighboring threads read neighboring coefficients.  Nothing depends on
// which block comes first: sums within a block have a fixed order, sums over blocks are of whole numbers.
#include "center.h"

namespace dphpc {

struct Described {
    Real* moments;        // (n, 4, CHANNELS), is set
    Real* inputs;         // (n, CHANNELS·AXIS + n_columns), is set: features, then columns
    double* largest;      // (n), is set: s̃, −∞ without pairs
    const Real* columns;  // (n, n_columns)
    int n_columns;
};

extern "C" __global__ void __launch_bounds__(BLOCK)
describe(const System system, const Descriptor d, const Described out) {
    __shared__ Real moments[n_rows * CHANNELS];
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
    if (me == 0) out.largest[blockIdx.x] = largest;

    Real* kept = out.moments + static_cast<long long>(blockIdx.x) * (n_rows * CHANNELS);
    for (int m = me; m < CHANNELS; m += BLOCK) {
        if (with_empty)
            for (int t = 0; t < N_TYPES; ++t)
                moments[m] += static_cast<Real>(free_slots[t]) * d.empty[(type * N_TYPES + t) * CHANNELS + m];
        for (int i = m; i < n_rows * CHANNELS; i += CHANNELS) kept[i] = moments[i] *= static_cast<Real>(d.scale);
    }
    __syncthreads();
    Real* inputs = out.inputs + static_cast<long long>(blockIdx.x) * (CHANNELS * AXIS + out.n_columns);
    for (int f = me; f < CHANNELS * AXIS; f += BLOCK) {
        const Real *one = moments + f / AXIS, *other = moments + f % AXIS;
        Real sum = Real(0);
        for (int a = 0; a < n_rows; ++a) sum += one[a * CHANNELS] * other[a * CHANNELS];
        inputs[f] = sum;
    }
    for (int k = me; k < out.n_columns; k += BLOCK)
        inputs[CHANNELS * AXIS + k] = out.columns[static_cast<long long>(blockIdx.x) * out.n_columns + k];
}

extern "C" __global__ void __launch_bounds__(BLOCK)
exert(const System system, const Descriptor d, const Exerted out) {
    __shared__ Real adjoint[n_rows * CHANNELS];
    __shared__ Terms terms[BLOCK];
    __shared__ Real sums[BLOCK][n_sums];
    const int me = threadIdx.x, atom = system.centers[blockIdx.x], type = system.types[atom];
    const long long row = blockIdx.x;
    form_moments_adjoint(out.moments + row * (n_rows * CHANNELS),
                         out.inputs_adjoint + row * (CHANNELS * AXIS + out.n_columns), adjoint);
    Count own[12] = {};
    const long long last = system.offsets[atom + 1];
    for (long long first = system.offsets[atom]; first < last; first += BLOCK) {
        Pair pair;
        double unused = 0.0;
        pair.interval = -1;
        if (first + me < last) read_pair(system, d, atom, type, first + me, pair, terms[me], unused);
        __syncthreads();
        form_sums(d, terms, last - first < BLOCK ? static_cast<int>(last - first) : BLOCK, adjoint, sums);
        __syncthreads();
        if (pair.interval >= 0) add_pair(d, pair, sums[me], out, own);
    }
    for (int k = 0; k < 12; ++k) {
        const Count total = warp_sum(own[k]);
        if (me % WARP != 0 || total == 0) continue;
        add(k < 3 ? out.forces + 3ll * atom + k : out.virial + 9ll * (blockIdx.x % out.n_slots) + (k - 3), total);
    }
}

}  // namespace dphpc
