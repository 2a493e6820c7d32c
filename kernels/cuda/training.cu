// The se_e2_a descriptor in training: moments, their tangent and backward passes; formulas in dphpc/ops/se_a/contract.py.
//
// The definitions in front of this text and the order of work are those of descriptor.cu, with one block for each atom
// unless noted otherwise.  The gradient by the table is summed interval by interval over sorted pairs, in shares of fixed
// size that are added in their order.
#include "adjoint.h"
#include "elements.h"
#include "forces.h"
#include "moments.h"
#include "scan.h"

namespace dphpc {

// The change of every displacement, ṙ_ij = d_j − d_i + strain·r_ij; twins of these structs: dphpc/ops/se_a/cuda.py.
struct Motion {
    const double* direction;  // (n_local, 3)
    const double* strain;     // (n_frames, 3, 3)
    const int* frames;        // (n) the frame of each center
    const int* owners;        // (n_all) the atom itself, or the one of which it is an image
};

// Pairs sorted by interval.
struct Sorted {
    const int* order;         // (n_pairs) places in the neighbor list
    const int* rows;          // (n_pairs) the center of each
    const long long* starts;  // (n_tables·n_intervals + 1) where each interval's pairs begin in the order
    int n_intervals;          // of all tables
    int n_shares;             // of each interval's pairs
};

// A frame that is kept on the GPU, and where its local atoms, images and pairs begin in a batch.
struct Frame {
    const double* positions;
    const int* types;
    const long long* offsets;
    const int *indices, *owners;
    long long n_local, n_all, n_pairs, first_local, first_ghost, first_pair;
};

// Joins frames, each by so many blocks: local atoms of all, then images of all, as in dphpc/train/data/batch.py.
extern "C" __global__ void __launch_bounds__(BLOCK)
join_frames(const Frame* frames, int n_blocks, double* positions, int* types, long long* offsets, int* indices, int* owners) {
    const Frame f = frames[blockIdx.x / n_blocks];
    const long long first = blockIdx.x % n_blocks * BLOCK + threadIdx.x, step = static_cast<long long>(n_blocks) * BLOCK;
    const auto place = [&](long long i) { return i < f.n_local ? f.first_local + i : f.first_ghost + (i - f.n_local); };
    for (long long i = first; i < f.n_all; i += step) {
        const long long to = place(i);
        for (int a = 0; a < 3; ++a) positions[3 * to + a] = f.positions[3 * i + a];
        types[to] = f.types[i];
        owners[to] = static_cast<int>(f.first_local) + f.owners[i];
    }
    for (long long i = first; i <= f.n_local; i += step) offsets[f.first_local + i] = f.first_pair + f.offsets[i];
    for (long long k = first; k < f.n_pairs; k += step) indices[f.first_pair + k] = static_cast<int>(place(f.indices[k]));
}

extern "C" __global__ void __launch_bounds__(BLOCK)
moments(const System system, const Descriptor d, Real* result, double* largest_of, int* free_of) {
    alignas(16) __shared__ Real sums[CHANNELS * n_rows];
    const long long row = blockIdx.x;
    const int atom = system.centers[row];
    const int* free_slots = form_moments(system, d, atom, sums, result + row * (n_rows * CHANNELS), largest_of + row);
    for (int t = threadIdx.x; t < N_TYPES; t += BLOCK) free_of[row * N_TYPES + t] = free_slots[t];
}

// What the channels need of a pair along the direction.
struct TangentTerms {
    Real row_dot[n_rows], turned[n_rows], t;  // row˙, row·ṫ
};

__device__ inline void move_pair(const Motion& motion, int atom, long long row, const Pair& pair, const Terms& at,
                                 TangentTerms& terms) {
    if (pair.interval < 0) return;
    const double *own = motion.direction + 3ll * atom, *strain = motion.strain + 9ll * motion.frames[row];
    const double* other = motion.direction + 3ll * motion.owners[pair.neighbor];
    double r_dot[3], along = 0.0;
    for (int a = 0; a < 3; ++a) {
        r_dot[a] = other[a] - own[a];
        for (int c = 0; c < 3; ++c) r_dot[a] += strain[3 * a + c] * pair.x[c];
        along += r_dot[a] * pair.x[a];
    }
    const double s_dot = pair.ds_r * along, t_dot = s_dot * pair.inverse_step;
    terms.row_dot[0] = static_cast<Real>(s_dot);
    for (int a = 0; a < 3; ++a)
        terms.row_dot[a + 1] = static_cast<Real>(pair.dv_r * along * pair.x[a] + pair.v * r_dot[a]);
    for (int a = 0; a < n_rows; ++a) terms.turned[a] = static_cast<Real>(at.row[a] * t_dot);
    terms.t = at.t;
}

// Σ row˙·t^k + row·ṫ·k·t^{k−1} over each of n runs, (n, 6, 4); terms stand in the order of the pairs.
__device__ inline void form_tangent_weights(const Runs& runs, const TangentTerms* terms, int first, int n, Real* weights) {
    for (int i = threadIdx.x; i < n * n_rows; i += BLOCK) {
        const int run = i / n_rows, row = i % n_rows, end = runs.starts[first + run + 1];
        Real sum[n_powers] = {};
        for (int p = runs.starts[first + run]; p < end; ++p) {
            const Real t = terms[p].t;
            Real power = Real(1), slope = Real(0);
#pragma unroll
            for (int k = 0; k < n_powers; ++k) {
                sum[k] += terms[p].row_dot[row] * power + terms[p].turned[row] * slope;
                slope = slope * t + power;
                power *= t;
            }
        }
#pragma unroll
        for (int k = 0; k < n_powers; ++k) weights[run * n_weights + k * n_rows + row] = sum[k];
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK)
tangent(const System system, const Descriptor d, const Motion motion, Real* result) {
    __shared__ Describing room;
    __shared__ Near near;
    __shared__ TangentTerms terms[BLOCK];
    alignas(16) __shared__ Real sums[CHANNELS * n_rows];
    const int atom = system.centers[blockIdx.x];
    const long long row = blockIdx.x;
    for (int i = threadIdx.x; i < n_rows * CHANNELS; i += BLOCK) sums[i] = Real(0);
    __syncthreads();
    Reader reader(system, atom);
    double unused = 0.0;
    add_pairs(
        system, d, reader, near, room, nullptr, unused, sums,
        [&](const Pair& pair, int place) {
            move_pair(motion, atom, row, pair, room.pairs.runs.terms[place], terms[place]);
        },
        [&](int first, int n, Real* weights) {
            if (first == 0) __syncthreads();  // all threads' terms are needed
            form_tangent_weights(room.pairs.runs, terms, first, n, weights);
        });
    for (int i = threadIdx.x; i < n_rows * CHANNELS; i += BLOCK)
        result[row * (n_rows * CHANNELS) + i] = sums[i % CHANNELS * n_rows + i / CHANNELS] * static_cast<Real>(d.scale);
}

// Forces on local atoms, those on images being added to their owners', and virials of the centers' frames (n).
extern "C" __global__ void __launch_bounds__(BLOCK)
forces(const System system, const Descriptor d, const int* owners, const int* frames, const Real* moments_adjoint,
       const Exerted out) {
    __shared__ Exerting room;
    alignas(16) __shared__ Real adjoint[n_rows * CHANNELS];
    __shared__ Count own[n_own];
    const int me = threadIdx.x, atom = system.centers[blockIdx.x];
    const long long row = blockIdx.x;
    for (int k = me; k < n_own; k += BLOCK) own[k] = 0;
    for (int i = me; i < n_rows * CHANNELS; i += BLOCK) adjoint[i] = moments_adjoint[row * (n_rows * CHANNELS) + i];
    __syncthreads();
    exert_pairs(system, d, atom, owners, adjoint, out, room, own);
    if (me >= n_own || own[me] == 0) return;
    add(me < 3 ? out.forces + 3ll * atom + me : out.virial + 9ll * frames[row] + (me - 3), own[me]);
}

// inputs (n, CHANNELS·AXIS + n_columns): features, then columns (null if there are none).
extern "C" __global__ void __launch_bounds__(BLOCK)
features(const Real* moments, const Real* columns, int n_columns, Real* inputs) {
    const long long row = blockIdx.x;
    const Real* a = moments + row * (n_rows * CHANNELS);
    Real* out = inputs + row * (CHANNELS * AXIS + n_columns);
    for (int f = threadIdx.x; f < CHANNELS * AXIS; f += BLOCK) {
        Real sum = Real(0);
        for (int r = 0; r < n_rows; ++r) sum += a[r * CHANNELS + f / AXIS] * a[r * CHANNELS + f % AXIS];
        out[f] = sum;
    }
    for (int k = threadIdx.x; k < n_columns; k += BLOCK) out[CHANNELS * AXIS + k] = columns[row * n_columns + k];
}

// The change of the inputs as the moments change by `tangent`; columns are left as they are.
extern "C" __global__ void __launch_bounds__(BLOCK)
features_tangent(const Real* moments, const Real* tangent, int n_columns, Real* inputs) {
    const long long row = blockIdx.x;
    const Real *a = moments + row * (n_rows * CHANNELS), *dot = tangent + row * (n_rows * CHANNELS);
    Real* out = inputs + row * (CHANNELS * AXIS + n_columns);
    for (int f = threadIdx.x; f < CHANNELS * AXIS; f += BLOCK) {
        const int m = f / AXIS, k = f % AXIS;
        Real sum = Real(0);
        for (int r = 0; r < n_rows * CHANNELS; r += CHANNELS) sum += a[r + m] * dot[r + k] + dot[r + m] * a[r + k];
        out[f] = sum;
    }
    for (int k = threadIdx.x; k < n_columns; k += BLOCK) out[CHANNELS * AXIS + k] = Real(0);
}

// Sets (n, 4, CHANNELS) to the derivative of y·D(A) by A, or, if a tangent is given, to that of y·D + p·Ḋ.
extern "C" __global__ void __launch_bounds__(BLOCK)
features_adjoint(const Real* moments, const Real* y, const Real* tangent, const Real* p, int n_columns, Real* result) {
    __shared__ Staging room;
    __shared__ Real other[n_rows * CHANNELS];
    const long long row = blockIdx.x, inputs = row * (CHANNELS * AXIS + n_columns);
    Real* sum = result + row * (n_rows * CHANNELS);
    form_moments_adjoint(moments + row * (n_rows * CHANNELS), y + inputs, room, sum);
    if (!tangent) return;
    form_moments_adjoint(tangent + row * (n_rows * CHANNELS), p + inputs, room, other);
    for (int i = threadIdx.x; i < n_rows * CHANNELS; i += BLOCK) sum[i] += other[i];
}

// Divides the centers into groups of about equal size, one for each block; calls work(row, atom) for this block's.
template <class Work>
__device__ inline void for_my_centers(const System& system, int n, Work work) {
    const int first = static_cast<int>(static_cast<long long>(n) * blockIdx.x / gridDim.x);
    const int last = static_cast<int>(static_cast<long long>(n) * (blockIdx.x + 1) / gridDim.x);
    for (int row = first; row < last; ++row) work(row, system.centers[row]);
}

// The interval of every pair of n centers, −1 for a pair that adds nothing; and counts (n_intervals, groups), initially 0,
// of the pairs in each interval and group of centers.
extern "C" __global__ void __launch_bounds__(BLOCK)
count_pairs(const System system, const Descriptor d, int n, int* intervals, int* counts) {
    for_my_centers(system, n, [&](int, int atom) {
        for (long long k = system.offsets[atom] + threadIdx.x; k < system.offsets[atom + 1]; k += BLOCK) {
            Pair pair;
            Terms at;
            double unused = 0.0;
            read_pair(system, d, atom, system.types[atom], k, pair, at, unused);
            intervals[k] = pair.interval;
            if (pair.interval >= 0) atomicAdd(counts + static_cast<long long>(pair.interval) * gridDim.x + blockIdx.x, 1);
        }
    });
}

// Sorts pairs by interval, and within one by center and place in the list; `places` are the prefix sums of the counts, and
// are overwritten.
extern "C" __global__ void __launch_bounds__(BLOCK)
sort_pairs(const System system, int n, int n_intervals, const int* intervals, Count* places, long long* starts, int* order,
           int* rows) {
    __shared__ int keys[BLOCK];
    const int me = threadIdx.x;
    for (int i = me; blockIdx.x == 0 && i <= n_intervals; i += BLOCK) starts[i] = places[static_cast<long long>(i) * gridDim.x];
    for_my_centers(system, n, [&](int row, int atom) {
        const long long last = system.offsets[atom + 1];
        for (long long first = system.offsets[atom]; first < last; first += BLOCK) {
            const int key = first + me < last ? intervals[first + me] : -1;
            keys[me] = key;
            __syncthreads();
            Count* place = places + (key < 0 ? 0 : key) * static_cast<long long>(gridDim.x) + blockIdx.x;
            int before = 0, after = 0;  // pairs of the same interval
            for (int k = 0; key >= 0 && k < BLOCK; ++k) {
                const bool same = keys[k] == key && k != me;
                if (k < me) before += same;
                else after += same;
            }
            if (key >= 0) {
                const Count to = *place + before;
                order[to] = static_cast<int>(first + me), rows[to] = row;
            }
            __syncthreads();
            if (key >= 0 && after == 0) *place += before + 1;
        }
    });
}

struct AdjointTerms {
    Terms at;
    TangentTerms dot;
    long long moments;  // place of its center's moments
};

// The gradient of Σ Ā·A + Ǡ·Ȧ by the coefficients, from each share of an interval by one block, into `shares` (n_shares,
// n_intervals, 6, CHANNELS).  A share without pairs is not set.
extern "C" __global__ void __launch_bounds__(BLOCK)
table_adjoint(const System system, const Descriptor d, const Motion motion, const Sorted pairs, const Real* bar,
              const Real* bar_dot, double* shares) {
    __shared__ AdjointTerms terms[BLOCK];
    const int me = threadIdx.x, interval = blockIdx.x / pairs.n_shares, share = blockIdx.x % pairs.n_shares;
    const long long from = pairs.starts[interval], count = pairs.starts[interval + 1] - from;
    const long long begin = from + count * share / pairs.n_shares, end = from + count * (share + 1) / pairs.n_shares;
    if (begin == end) return;
    double* out = shares + (static_cast<long long>(share) * pairs.n_intervals + interval) * (n_powers * CHANNELS);
    for (int m = me; m - me < CHANNELS; m += BLOCK) {
        double sum[n_powers] = {};
        for (long long first = begin; first < end; first += BLOCK) {
            const int n = end - first < BLOCK ? static_cast<int>(end - first) : BLOCK;
            __syncthreads();
            if (me < n) {
                const long long place = pairs.order[first + me], row = pairs.rows[first + me];
                const int atom = system.centers[row];
                Pair pair;
                double unused = 0.0;
                read_pair(system, d, atom, system.types[atom], place, pair, terms[me].at, unused);
                move_pair(motion, atom, row, pair, terms[me].at, terms[me].dot);
                terms[me].moments = row * (n_rows * CHANNELS);
            }
            __syncthreads();
            for (int p = 0; m < CHANNELS && p < n; ++p) {
                const AdjointTerms& pair = terms[p];
                const Real *by_value = bar + pair.moments + m, *by_tangent = bar_dot + pair.moments + m;
                double value = 0.0, turned = 0.0, power = 1.0, slope = 0.0;  // of G, of its slope by t; t^k and its slope
                for (int a = 0; a < n_rows; ++a) {
                    const double dot = by_tangent[a * CHANNELS];
                    value += pair.at.row[a] * static_cast<double>(by_value[a * CHANNELS]) + pair.dot.row_dot[a] * dot;
                    turned += pair.dot.turned[a] * dot;
                }
                for (int k = 0; k < n_powers; ++k) {
                    sum[k] += value * power + turned * slope;
                    slope = slope * pair.at.t + power;
                    power *= pair.at.t;
                }
            }
        }
        for (int k = 0; m < CHANNELS && k < n_powers; ++k) out[k * CHANNELS + m] = d.scale * sum[k];
    }
}

// The gradient by the missing slots, from each share of the centers of type c and each neighbor type t by one block, into
// `shares` (n_shares, N_TYPES, N_TYPES, CHANNELS); rows of type c begin at first_rows[c].
extern "C" __global__ void __launch_bounds__(BLOCK)
empty_adjoint(const Descriptor d, const long long* first_rows, const int* free_of, const Real* bar, int n_shares,
              double* shares) {
    const int share = blockIdx.x % n_shares, slot = blockIdx.x / n_shares, type = slot / N_TYPES, other = slot % N_TYPES;
    const long long from = first_rows[type], count = first_rows[type + 1] - from;
    const long long begin = from + count * share / n_shares, end = from + count * (share + 1) / n_shares;
    for (int m = threadIdx.x; m < CHANNELS; m += BLOCK) {
        double sum = 0.0;  // and stays so if missing slots are rows of zeros, which are not counted
        for (long long row = begin; d.davg[type] != 0.0 && row < end; ++row)
            sum += free_of[row * N_TYPES + other] * static_cast<double>(bar[row * (n_rows * CHANNELS) + m]);
        shares[(static_cast<long long>(share) * (N_TYPES * N_TYPES) + slot) * CHANNELS + m] = d.scale * sum;
    }
}

// result (n) = the sum of shares (n_shares, n) in their order.  If `starts` is given, each `group` of values belongs to an
// interval, and shares without pairs are skipped.
extern "C" __global__ void add_shares(const double* shares, const long long* starts, int group, int n_shares, long long n,
                                      double* result) {
    const long long i = my_element();
    if (i >= n) return;
    const long long count = starts ? starts[i / group + 1] - starts[i / group] : n_shares;
    double sum = 0.0;
    for (int share = 0; share < n_shares; ++share)
        if (count * share / n_shares < count * (share + 1) / n_shares) sum += shares[share * n + i];
    result[i] = sum;
}

}  // namespace dphpc
