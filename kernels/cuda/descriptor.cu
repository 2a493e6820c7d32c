// The se_e2_a descriptor and its backward pass to forces, one block for each atom; formulas in dphpc/ops/se_a/contract.py.
//
// Defined in front of this text, for one model: Real, CHANNELS, AXIS, N_TYPES, PARTS, WARP and BLOCK.  Threads first read one
// neighbor each, then share the channels, so that neighboring threads read neighboring coefficients.  Results do not depend
// on the order of the blocks: sums within a block have a fixed order, and sums over blocks are of integers.  The block of a
// negative center does nothing.
#include "adjoint.h"
#include "forces.h"
#include "moments.h"
#include "parts.h"

namespace dphpc {

struct Described {
    Real* moments;        // (n, 4, CHANNELS), is set
    Real* inputs;         // (n, CHANNELS·AXIS + n_columns), is set in parts: features, then columns
    double* largest;      // (n), is set: s̃, −∞ without pairs
    const Real* columns;  // (n, n_columns)
    int n_columns;
};

// Blocks of 128 threads on a multiprocessor: while one waits for memory, others work.  In the backward pass in float64, 4 are
// faster, as more of the table stays in the L1 cache.  For GPUs before Hopper the compiler spills registers with more.
#if defined(__HIP__)  // the launch bound means something else; a compute unit's shared memory holds two to five blocks
constexpr int n_describing = 1, n_exerting = 1;
#else
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int most_describing = sizeof(Real) == 8 ? 5 : 8, most_exerting = sizeof(Real) == 8 ? 4 : 8;
#else
constexpr int most_describing = sizeof(Real) == 8 ? 4 : 6, most_exerting = most_describing;
#endif
constexpr int n_describing = most_describing * 128 / BLOCK, n_exerting = most_exerting * 128 / BLOCK;
#endif

// D = Aᵀ·A[:, :AXIS] of moments (CHANNELS, 4) in shared memory, the first of n_in inputs.
__device__ inline void form_features(const Real* moments, int n_in, Real* inputs) {
    if constexpr (BLOCK % AXIS == 0) {
        const int k = threadIdx.x % AXIS;  // the same column each time
        const auto column = together<n_rows>(moments + n_rows * k);
        for (int m = threadIdx.x / AXIS; m < CHANNELS; m += BLOCK / AXIS) {
            const auto row = together<n_rows>(moments + n_rows * m);
            Real sum = Real(0);
            for (int a = 0; a < n_rows; ++a) sum += row.of[a] * column.of[a];
            lay_parts(inputs, n_in, m * AXIS + k, sum);
        }
    } else {
        for (int f = threadIdx.x; f < CHANNELS * AXIS; f += BLOCK) {
            const auto row = together<n_rows>(moments + n_rows * (f / AXIS));
            const auto column = together<n_rows>(moments + n_rows * (f % AXIS));
            Real sum = Real(0);
            for (int a = 0; a < n_rows; ++a) sum += row.of[a] * column.of[a];
            lay_parts(inputs, n_in, f, sum);
        }
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, n_describing)
describe(const System system, const Descriptor d, const Described out) {
    alignas(16) __shared__ Real moments[CHANNELS * n_rows];
    const int atom = system.centers[blockIdx.x];
    const long long row = blockIdx.x;
    if (atom < 0) return;
    form_moments(system, d, atom, moments, out.moments + row * (n_rows * CHANNELS), out.largest + row);
    __syncthreads();
    const int n_in = CHANNELS * AXIS + out.n_columns;
    Real* inputs = out.inputs + row * (PARTS * n_in);
    form_features(moments, n_in, inputs);
    for (int k = threadIdx.x; k < out.n_columns; k += BLOCK)
        lay_parts(inputs, n_in, CHANNELS * AXIS + k, out.columns[row * out.n_columns + k]);
}

extern "C" __global__ void __launch_bounds__(BLOCK, n_exerting)
exert(const System system, const Descriptor d, const Exerted out) {
    __shared__ union {
        Staging staging;
        Exerting pairs;
    } room;
    alignas(16) __shared__ Real adjoint[n_rows * CHANNELS];
    __shared__ Count own[n_own];
    const int me = threadIdx.x, atom = system.centers[blockIdx.x];
    const long long row = blockIdx.x;
    if (atom < 0) return;
    for (int k = me; k < n_own; k += BLOCK) own[k] = 0;
    form_moments_adjoint(out.moments + row * (n_rows * CHANNELS),
                         out.inputs_adjoint + row * (CHANNELS * AXIS + out.n_columns), room.staging, adjoint);
    exert_pairs(system, d, atom, nullptr, adjoint, out, room.pairs, own);
    if (me >= n_own || own[me] == 0) return;
    add(me < 3 ? out.forces + 3ll * atom + me : out.virial + 9ll * (blockIdx.x % out.n_slots) + (me - 3), own[me]);
}

}  // namespace dphpc
