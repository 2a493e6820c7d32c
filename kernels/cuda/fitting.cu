// The operations between the matrix products of a fitting net, forward and backward.
//
// Defined in front of this text: Real, PARTS, of which rows of a product's left factor consist (parts.h), WARP and BLOCK.
#include "output.h"
#include "sums.h"

namespace dphpc {

// z (n, n_out): x·w, afterwards ∂y/∂z; x (n, n_in) in parts; y (n, n_out), is set, in parts.
extern "C" __global__ void activate(const Layer layer, long long n, Real* z, const Real* x, Real* y) {
    const long long i = my_element();
    if (i >= n * layer.n_out) return;
    const Place at = place_of(i, layer.n_out);
    Real value;
    z[i] = output(layer, at.column, z[i], x + at.row * (PARTS * layer.n_in), value);
    lay_parts(y + at.row * (PARTS * layer.n_out), layer.n_out, at.column, value);
}

// adjoint (n, n_in) of a layer's input holds what comes through the weights; adds what comes by the skip connection from
// the adjoint of its output (n, n_out).  Also sets, in parts, its product with the slope (n, n_in) of the layer before, if
// there is one.
extern "C" __global__ void pass_back(const Layer layer, long long n, const Real* output_adjoint, Real* adjoint,
                                     const Real* slope, Real* factor) {
    const long long i = my_element();
    if (i >= n * layer.n_in) return;
    const Real sum = adjoint[i] = with_skip(layer, i, output_adjoint, adjoint[i]);
    if (!slope) return;
    const Place at = place_of(i, layer.n_in);
    lay_parts(factor + at.row * (PARTS * layer.n_in), layer.n_in, at.column, slope[i] * sum);
}

// What the last layer reads and writes; the twins of this struct and the next are in dphpc/ops/energy/cuda.py.
struct Rows {
    const Real* w;      // (n_in, 1)
    const Real* x;      // (n, n_in) in parts
    const Real* slope;  // (n, n_in) of the layer before, or null
    Real* energies;     // (n)
    Real* adjoint;      // (n, n_in) of x, or null
    Real* factor;       // (n, n_in) in parts: its product with the slope, where there is one
};

// Where energies are summed, and how invalid results are reported.
struct Tally {
    double* sum;            // (3) in the parts of exact_sum.h; null if it is not wanted
    const double* largest;  // (n), as `describe` leaves them
    Count* trouble;
    double shift, upper;  // added to each energy; `largest` above it is trouble
};

constexpr int n_ahead = 8;  // loads that a lane issues before it waits for the first

// Every WARP-th of n numbers, from `from` on; 0 beyond the last.
template <class Number>
__device__ inline void gather(int from, int n, const Number& number, Real* to) {
#pragma unroll
    for (int c = 0; c < n_ahead; ++c) to[c] = from + c * WARP < n ? number(from + c * WARP) : Real(0);
}

// The last layer, forward and backward; it has one output, whose adjoint is 1.  A warp sums one row at a time, in an order
// that depends on n_in only.  Each lane reads the same elements of x as it writes of the adjoint, so that both may be the
// same array, and so may slope and factor.
extern "C" __global__ void __launch_bounds__(BLOCK)
last_layer(const Layer layer, long long n, const Rows rows, const Tally tally) {
    const int lane = threadIdx.x % WARP, n_in = layer.n_in;
    ExactSum own;
    bool bad = false;
    for (long long row = my_place() / WARP; row < n; row += n_threads() / WARP) {
        const Real* x = rows.x + row * (PARTS * n_in);
        const auto weight = [&](int k) { return rows.w[k]; };
        const auto slope_below = [&](int k) { return rows.slope ? rows.slope[row * n_in + k] : Real(0); };
        Real energy, z = Real(0), weights[n_ahead], values[n_ahead];
        for (int from = lane; from < n_in; from += n_ahead * WARP) {
            gather(from, n_in, weight, weights);
            gather(from, n_in, [&](int k) { return whole(x, n_in, k); }, values);
            for (int c = 0; c < n_ahead; ++c) z += values[c] * weights[c];
        }
        fold<WARP, 1>(&z);
        const Real slope = output(layer, 0, z, x, energy);
        for (int from = lane; from < n_in; from += n_ahead * WARP) {
            gather(from, n_in, weight, weights);
            gather(from, n_in, slope_below, values);
#pragma unroll
            for (int c = 0, k = from; c < n_ahead && k < n_in; ++c, k += WARP) {
                const Real sum = with_skip(layer, row * n_in + k, nullptr, slope * weights[c]);
                if (rows.factor) lay_parts(rows.factor + row * (PARTS * n_in), n_in, k, values[c] * sum);
                if (rows.adjoint) rows.adjoint[row * n_in + k] = sum;
            }
        }
        if (lane > 0) continue;
        rows.energies[row] = energy;
        if (!tally.sum) continue;
        const double shifted = static_cast<double>(energy) + tally.shift;
        bad = bad || !(fabs(shifted) < 1.0 / 0.0) || tally.largest[row] > tally.upper;
        own.add(shifted);
    }
    if (bad) *tally.trouble = 1;
    if (tally.sum) add_warps_parts(own, tally.sum);
}

}  // namespace dphpc
