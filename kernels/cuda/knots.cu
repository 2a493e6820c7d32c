// The radial table of scalar networks and the way back to their weights, between matrix products; formulas in
// dphpc/ops/se_a/knots.py.
//
// Defined in front of this text: Real, which is double, and Table, the precision of table and weights.  A jet has three
// parts, value and two derivatives, each (n, width) for n knots; one element a thread.
#include "moment_weights.h"
#include "skip.h"

namespace dphpc {

constexpr int n_jet = 3;

// z: the jet of x·w, to which the bias is added here.  Sets the jets y and act′, act″, act‴, and act's jet where it is
// asked for; x (3, n, n_in).
extern "C" __global__ void jet(const Layer layer, long long n, Real* z, const Real* x, Real* y, Real* slopes,
                               Real* activated) {
    const long long i = my_element(), part = n * layer.n_out, part_in = n * layer.n_in;
    if (i >= part) return;
    const Place here = place_of(i, layer.n_out);
    if (layer.bias) z[i] += layer.bias[here.column];
    const Derivatives at = derivatives(layer, z[i]);
    const Real z1 = z[part + i], z2 = z[2 * part + i];
    slopes[i] = at.slope, slopes[part + i] = at.curvature, slopes[2 * part + i] = at.third;
    const Real of_act[n_jet] = {at.value, at.slope * z1, at.curvature * z1 * z1 + at.slope * z2};
    for (int k = 0; k < n_jet; ++k) {
        Real value = of_act[k];
        if (activated) activated[k * part + i] = value;
        if (layer.idt) value *= layer.idt[here.column];
        if (layer.skip) value += x[k * part_in + here.row * layer.n_in + here.column % layer.n_in];
        y[k * part + i] = value;
    }
}

// The adjoint of z's jet from that of y's.  With idt: what its gradient is the sum of.
extern "C" __global__ void jet_adjoint(const Layer layer, long long n, const Real* y, const Real* z, const Real* slopes,
                                       const Real* activated, Real* z_adjoint, Real* idt_terms) {
    const long long i = my_element(), part = n * layer.n_out;
    if (i >= part) return;
    const Real idt = layer.idt ? layer.idt[place_of(i, layer.n_out).column] : Real(1);
    if (layer.idt)
        for (long long k = i; k < n_jet * part; k += part) idt_terms[k] = y[k] * activated[k];
    const Real y0 = y[i] * idt, y1 = y[part + i] * idt, y2 = y[2 * part + i] * idt;
    const Real z1 = z[part + i], z2 = z[2 * part + i], a1 = slopes[i], a2 = slopes[part + i], a3 = slopes[2 * part + i];
    z_adjoint[i] = y0 * a1 + y1 * a2 * z1 + y2 * (a3 * z1 * z1 + a2 * z2);
    z_adjoint[part + i] = y1 * a1 + Real(2) * y2 * a2 * z1;
    z_adjoint[2 * part + i] = y2 * a1;
}

// Of coefficient k of t = (s − left)/h: the weight of derivative d, times h^d, at the left or right knot.
__device__ inline double hermite(int k, int right, int d) {
    const double weights[n_powers][2 * n_jet] = {{1, 0, 0, 0, 0, 0},           {0, 1, 0, 0, 0, 0},    {0, 0, 0.5, 0, 0, 0},
                                                 {-10, -6, -1.5, 10, -4, 0.5}, {15, 8, 1.5, -15, 7, -1}, {-6, -3, -0.5, 6, -3, 0.5}};
    return weights[k][n_jet * right + d];
}

struct Tables {
    const double* widths;  // (n_intervals)
    int n_tables, n_intervals, channels;
};

// coefficients (n_tables, n_intervals, 6, channels) from jets (n_tables, 3, n_intervals + 1, channels).
extern "C" __global__ void coefficients(const Tables tables, const double* jets, Table* result) {
    const long long i = my_element(), row = i / tables.channels, m = i % tables.channels;
    if (row >= static_cast<long long>(tables.n_tables) * tables.n_intervals) return;
    const long long n = tables.n_intervals + 1, interval = row % tables.n_intervals;
    const double h = tables.widths[interval];
    const double* from = jets + (row / tables.n_intervals * n_jet * n + interval) * tables.channels + m;
    double side[2][n_jet];
    for (int right = 0; right < 2; ++right)
        for (int d = 0; d < n_jet; ++d)
            side[right][d] = from[(d * n + right) * tables.channels] * (d == 0 ? 1.0 : d == 1 ? h : h * h);
#pragma unroll
    for (int k = 0; k < n_powers; ++k) {
        double part[2] = {0.0, 0.0};
#pragma unroll
        for (int right = 0; right < 2; ++right)
#pragma unroll
            for (int d = 0; d < n_jet; ++d) part[right] += hermite(k, right, d) * side[right][d];
        result[(row * n_powers + k) * tables.channels + m] = static_cast<Table>(part[0] + part[1]);
    }
}

// The transpose: jets (n_tables, 3, n_intervals + 1, channels) from the gradient by the coefficients.
extern "C" __global__ void jets_adjoint(const Tables tables, const double* gradient, double* jets) {
    const long long i = my_element(), row = i / tables.channels, m = i % tables.channels;
    const long long n = tables.n_intervals + 1, table = row / n, knot = row % n;
    if (table >= tables.n_tables) return;
    double sum[n_jet] = {};
#pragma unroll
    for (int right = 0; right < 2; ++right) {  // this knot is an interval's left or right side
        const long long interval = knot - right;
        if (interval < 0 || interval >= tables.n_intervals) continue;
        const double* c = gradient + (table * tables.n_intervals + interval) * n_powers * tables.channels + m;
        const double h = tables.widths[interval];
#pragma unroll
        for (int d = 0; d < n_jet; ++d) {
            double along = 0.0;
#pragma unroll
            for (int k = 0; k < n_powers; ++k) along += hermite(k, right, d) * c[k * tables.channels];
            sum[d] += along * (d == 0 ? 1.0 : d == 1 ? h : h * h);
        }
    }
    for (int d = 0; d < n_jet; ++d) jets[((table * n_jet + d) * n + knot) * tables.channels + m] = sum[d];
}

// Missing slots, n of them: intervals (n), −1 for a slot that is not there, and powers (n, 6) of t, times the row.
struct Slots {
    const int* intervals;
    const double* powers;
    int n, channels;
};

// result (n, channels)
extern "C" __global__ void empty_slots(const Slots slots, const Table* coefficients, Table* result) {
    const long long i = my_element(), slot = i / slots.channels, m = i % slots.channels;
    if (slot >= slots.n) return;
    double sum = 0.0;
    const long long interval = slots.intervals[slot];
    for (int k = 0; interval >= 0 && k < n_powers; ++k)
        sum += coefficients[(interval * n_powers + k) * slots.channels + m] * slots.powers[slot * n_powers + k];
    result[i] = static_cast<Table>(sum);
}

// The gradient by the coefficients += what that by the slots (n, channels) means for it.
extern "C" __global__ void empty_slots_adjoint(const Slots slots, const double* gradient, double* coefficients) {
    const long long i = my_element(), k = i / slots.channels, m = i % slots.channels;
    if (k >= n_powers) return;
    for (int slot = 0; slot < slots.n; ++slot) {
        const long long interval = slots.intervals[slot];
        if (interval < 0) continue;
        coefficients[(interval * n_powers + k) * slots.channels + m] +=
            gradient[static_cast<long long>(slot) * slots.channels + m] * slots.powers[slot * n_powers + k];
    }
}

extern "C" __global__ void widen(long long n, const Table* from, double* to) {
    const long long i = my_element();
    if (i < n) to[i] = from[i];
}

extern "C" __global__ void narrow(long long n, const double* from, Table* to) {
    const long long i = my_element();
    if (i < n) to[i] = static_cast<Table>(from[i]);
}

}  // namespace dphpc
