// The se_e2_a descriptor and the way back to forces, one block an atom; formulas in dphpc/ops/se_a/contract.py.
//
// Defined in front of this text, for one model: Real, CHANNELS, AXIS, N_TYPES, PARTS, WARP and BLOCK.  Threads first read one
// neighbor each, then share the channels, so that neighboring threads read neighboring coefficients.  Nothing depends on
// which block comes first: sums within a block have a fixed order, sums over blocks are of whole numbers.  A center below
// zero is nobody: its block does nothing.
#include "center.h"
#include "parts.h"
#include "runs.h"

namespace dphpc {

struct Described {
    Real* moments;        // (n, 4, CHANNELS), is set
    Real* inputs;         // (n, CHANNELS·AXIS + n_columns), is set in parts: features, then columns
    double* largest;      // (n), is set: s̃, −∞ without pairs
    const Real* columns;  // (n, n_columns)
    int n_columns;
};

// Blocks of a multiprocessor at a time: while one waits for memory, others work; but with float64's Ā, 4 keep more of the
// table in the nearest cache.  Compilers for cards before Hopper spill registers with more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int n_describing = sizeof(Real) == 8 ? 5 : 8, n_exerting = sizeof(Real) == 8 ? 4 : 8;
#else
constexpr int n_describing = sizeof(Real) == 8 ? 4 : 6, n_exerting = n_describing;
#endif

// Shared memory of one purpose after the other.
union Describing {
    struct {
        Runs runs;
        alignas(16) Real weights[most_runs * n_weights];
    } pairs;
    Real partial[Moments::n_groups * n_rows * CHANNELS];
};

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
    __shared__ Describing room;
    __shared__ Near near;
    alignas(16) __shared__ Real moments[CHANNELS * n_rows];
    __shared__ double maxima[BLOCK / WARP];
    __shared__ int free_slots[N_TYPES];
    const int me = threadIdx.x, atom = system.centers[blockIdx.x];
    const long long row = blockIdx.x;
    if (atom < 0) return;
    Reader reader(system, atom);
    const bool with_empty = d.davg[reader.type] != 0.0;  // otherwise a missing slot is a row of zeros
    for (int t = me; t < N_TYPES; t += BLOCK) free_slots[t] = d.sel[t];
    for (int i = me; i < n_rows * CHANNELS; i += BLOCK) moments[i] = Real(0);
    __syncthreads();
    double largest = -1.0 / 0.0;
    Runs& runs = room.pairs.runs;
    while (const int n = reader.gather(system, d, near, with_empty ? free_slots : nullptr)) {
        Pair pair;
        int place;
        const int n_runs = reader.order(system, d, n, near, runs, pair, place, largest);
        Moments sums;
        for (int first = 0; first < n_runs; first += most_runs) {
            const int n_here = n_runs - first < most_runs ? n_runs - first : most_runs;
            form_weights(runs, first, n_here, room.pairs.weights);
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
    largest = block_max(largest, maxima);
    if (me == 0) out.largest[row] = largest;
    for (int i = me; i < n_rows * CHANNELS; i += BLOCK) {
        Real& sum = moments[i % CHANNELS * n_rows + i / CHANNELS];
        for (int t = 0; with_empty && i < CHANNELS && t < N_TYPES; ++t)
            sum += static_cast<Real>(free_slots[t]) * d.empty[(reader.type * N_TYPES + t) * CHANNELS + i];
        out.moments[row * (n_rows * CHANNELS) + i] = sum *= static_cast<Real>(d.scale);
    }
    __syncthreads();
    const int n_in = CHANNELS * AXIS + out.n_columns;
    Real* inputs = out.inputs + row * (PARTS * n_in);
    form_features(moments, n_in, inputs);
    for (int k = me; k < out.n_columns; k += BLOCK)
        lay_parts(inputs, n_in, CHANNELS * AXIS + k, out.columns[row * out.n_columns + k]);
}

constexpr int most_staged = (CHANNELS > 256 ? 512 : 2048) / (AXIS + 1);
constexpr int n_staged = most_staged < 1 ? 1 : most_staged < CHANNELS ? most_staged : CHANNELS;  // channels
constexpr int n_slices = BLOCK > AXIS ? BLOCK / AXIS : 1;

// Moments, and ∂E/∂D of some channels, read once from memory; and sums over slices of them.
struct Staging {
    alignas(16) Real moments[CHANNELS * n_rows];
    Real y[n_staged * (AXIS + 1)];  // one more a row, so that lanes meet in different banks
    Real partial[n_slices * n_rows * AXIS];
};

union Exerting {
    struct {
        Runs runs;
        Real by_run[most_runs * n_weights];
        Pair pairs[BLOCK];  // each thread's own: in registers they would be in the way of sums over channels
    } pairs;
    Staging staging;
};

// ∂E/∂A (4, CHANNELS) from y = ∂E/∂D (CHANNELS, AXIS), with D = Aᵀ·A[:, :AXIS]; the block meets at its end.
__device__ inline void stage_adjoint(const Real* moments, const Real* y, Staging& room, Real* adjoint) {
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

extern "C" __global__ void __launch_bounds__(BLOCK, n_exerting)
exert(const System system, const Descriptor d, const Exerted out) {
    __shared__ Exerting room;
    __shared__ Near near;
    alignas(16) __shared__ Real adjoint[n_rows * CHANNELS];
    __shared__ Count own[n_own];
    const int me = threadIdx.x, atom = system.centers[blockIdx.x];
    const long long row = blockIdx.x;
    if (atom < 0) return;
    for (int k = me; k < n_own; k += BLOCK) own[k] = 0;
    stage_adjoint(out.moments + row * (n_rows * CHANNELS),
                  out.inputs_adjoint + row * (CHANNELS * AXIS + out.n_columns), room.staging, adjoint);
    Reader reader(system, atom);
    Runs& runs = room.pairs.runs;
    while (const int n = reader.gather(system, d, near, nullptr)) {
        int place;
        double unused = 0.0;
        const int n_runs = reader.order(system, d, n, near, runs, room.pairs.pairs[me], place, unused);
        for (int first = 0; first < n_runs; first += most_runs) {
            const int n_here = n_runs - first < most_runs ? n_runs - first : most_runs;
            form_run_sums(runs, d, first, n_here, adjoint, room.pairs.by_run);
            __syncthreads();
            if (me - me % WARP < n) {  // warps without pairs have nothing to add
                Count mine[n_own] = {};
                const int run = me < n ? runs.keys[place] - first : -1;
                if (run >= 0 && run < n_here) {
                    Real sums[n_sums];
                    form_pair_sums(runs.terms[place], room.pairs.by_run + run * n_weights, sums);
                    add_pair(d, room.pairs.pairs[me], sums, out, mine);
                }
                const int begin = fold<WARP, n_own>(mine);
                if (keeps<WARP, n_own>())
                    for (int k = 0; k < folded(WARP, n_own); ++k) add(own + begin + k, mine[k]);
            }
            __syncthreads();
        }
        reader.let_go(n, near);
    }
    if (me >= n_own || own[me] == 0) return;
    add(me < 3 ? out.forces + 3ll * atom + me : out.virial + 9ll * (blockIdx.x % out.n_slots) + (me - 3), own[me]);
}

}  // namespace dphpc
