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
    const int me = threadIdx.x;
    const long long row = blockIdx.x;
    form_moments(system, d, moments, out.moments + row * (n_rows * CHANNELS), out.largest + row);
    __syncthreads();
    Real* inputs = out.inputs + row * (CHANNELS * AXIS + out.n_columns);
    for (int f = me; f < CHANNELS * AXIS; f += BLOCK) {
        const Real *one = moments + f / AXIS, *other = moments + f % AXIS;
        Real sum = Real(0);
        for (int a = 0; a < n_rows; ++a) sum += one[a * CHANNELS] * other[a * CHANNELS];
        inputs[f] = sum;
    }
    for (int k = me; k < out.n_columns; k += BLOCK)
        inputs[CHANNELS * AXIS + k] = out.columns[row * out.n_columns + k];
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
