// The loops over the M channels, which contain all accesses to the table.
//
// A group is the pairs of one center that fall into the same interval of a table.  Groups of several pairs enter by
// their (6, 4) weights (moment_weights.h).  Most groups are a single pair, for which evaluating the polynomial itself
// is less work: these follow the others, with a `Single` in the place of the weights.  Channels are processed in blocks
// whose accumulators stay in registers during the loop over all groups.  Channels left over by full vectors are covered
// by one more vector that ends with the last channel; if there are fewer channels than lanes, vectors are narrower.
#pragma once

#include "moment_weights.h"
#include "vec.h"

namespace dphpc {

// A group of one pair: moments[a] += value[a]·G + slope[a]·dG/dt; `slope` is used for derivatives along a direction.
template <class Real>
struct Single {
    Real value[n_rows], slope[n_rows], t;
};

template <class Real>
struct Groups {
    const Real* const* coefficients;  // (6, M) of each group's interval
    int n_crowded, n;                 // groups of several pairs, all groups
};

// The coefficients (6) of N channels, in the form that `polynomial` reads.
template <class Real, int N>
struct Coefficients {
    const Real* first;
    int channels;
    Vec<Real, N> operator()(int k) const { return load<Real, N>(first + k * channels); }
};

// ------------------------------------------------------------------ moments[a][m] = Σ_groups Σ_k w[k][a]·c_k[m]

template <class Real, bool with_slope, int N, int n_vec>
inline void accumulate_block(const Groups<Real>& groups, const Real* weights, int channels, int m, Real* moments) {
    Vec<Real, N> sum[n_rows][n_vec] = {};
    const Real* w = weights;
    for (int g = 0; g < groups.n_crowded; ++g) {
        const Real* c = groups.coefficients[g] + m;
        for (int k = 0; k < n_powers; ++k, c += channels, w += n_rows)
            for (int v = 0; v < n_vec; ++v) {
                const auto value = load<Real, N>(c + N * v);
                for (int a = 0; a < n_rows; ++a) sum[a][v] += w[a] * value;
            }
    }
    for (int g = groups.n_crowded; g < groups.n; ++g, w += n_weights) {
        const Single<Real> pair = *reinterpret_cast<const Single<Real>*>(w);
        for (int v = 0; v < n_vec; ++v) {
            const Coefficients<Real, N> c{groups.coefficients[g] + m + N * v, channels};
            if constexpr (with_slope) {
                Vec<Real, N> value, slope;
                polynomial(pair.t, c, value, slope);
                for (int a = 0; a < n_rows; ++a) sum[a][v] += pair.value[a] * value + pair.slope[a] * slope;
            } else {
                const auto value = polynomial<Vec<Real, N>>(pair.t, c);
                for (int a = 0; a < n_rows; ++a) sum[a][v] += pair.value[a] * value;
            }
        }
    }
    for (int a = 0; a < n_rows; ++a)
        for (int v = 0; v < n_vec; ++v) store<Real, N>(moments + a * channels + m + N * v, sum[a][v]);
}

template <class Real, bool with_slope, int N = vector_lanes<Real>>
inline void accumulate(const Groups<Real>& groups, const Real* weights, int channels, Real* moments) {
    int m = 0;
    constexpr int n_vec = N < vector_lanes<Real> ? 1 : vector_registers >= 32 ? 4 : 2;
    for (; m + N * n_vec <= channels; m += N * n_vec)
        accumulate_block<Real, with_slope, N, n_vec>(groups, weights, channels, m, moments);
    if constexpr (n_vec > 1)
        for (; m + N <= channels; m += N)
            accumulate_block<Real, with_slope, N, 1>(groups, weights, channels, m, moments);
    if (m == channels) return;
    if (channels >= N) return accumulate_block<Real, with_slope, N, 1>(groups, weights, channels, channels - N, moments);
    if constexpr (N > 1) accumulate<Real, with_slope, N / 2>(groups, weights, channels, moments);
}

// ------------------------------------------------------------------ b[k][a] = Σ_m c_k[m]·adjoint[a][m]

// Calls add(m, rows) with the four rows of the adjoint at channels m … m + N − 1.  Each channel counts once: in the
// last, overlapping vector the lanes of channels already processed are zero.
template <class Real, int N, class Add>
inline void for_rows(const Real* adjoint, int channels, Add&& add) {
    Vec<Real, N> rows[n_rows];
    const auto load_rows = [&](int m) {
        for (int a = 0; a < n_rows; ++a) rows[a] = load<Real, N>(adjoint + a * channels + m);
    };
    int m = 0;
    for (; m + N <= channels; m += N) load_rows(m), add(m, rows);
    if (m == channels) return;
    load_rows(channels - N);
    const auto fresh = last_lanes<Real, N>(channels - m);
    for (int a = 0; a < n_rows; ++a) rows[a] *= fresh;
    add(channels - N, rows);
}

// Sets b for the powers k = first … first + count − 1.
template <class Real, int N, int first, int count>
inline void project_powers(const Real* c, const Real* adjoint, int channels, Real* b) {
    Vec<Real, N> sum[count * n_rows] = {};
    for_rows<Real, N>(adjoint, channels, [&](int m, const Vec<Real, N>* rows) {
        for (int k = 0; k < count; ++k) {
            const auto value = load<Real, N>(c + (first + k) * channels + m);
            for (int a = 0; a < n_rows; ++a) sum[n_rows * k + a] += value * rows[a];
        }
    });
    set_lane_sums<count * n_rows, Real, N>(sum, b + n_rows * first);
}

// Sets b (6, 4) of a group of several pairs.
template <class Real, int N = vector_lanes<Real>>
inline void project(const Real* c, const Real* adjoint, int channels, Real* b) {
    if constexpr (N > 1)
        if (channels < N) return project<Real, N / 2>(c, adjoint, channels, b);
    if constexpr (vector_registers >= 32) {
        project_powers<Real, N, 0, 6>(c, adjoint, channels, b);
    } else {
        project_powers<Real, N, 0, 2>(c, adjoint, channels, b);
        project_powers<Real, N, 2, 2>(c, adjoint, channels, b);
        project_powers<Real, N, 4, 2>(c, adjoint, channels, b);
    }
}

// Sets b (2, 4) of a single pair: b[0][a] = Σ_m G[m]·adjoint[a][m], and b[1][a] the same with dG/dt.
template <class Real, int N = vector_lanes<Real>>
inline void project_single(const Real* c, const Real* adjoint, Real t, int channels, Real* b) {
    if constexpr (N > 1)
        if (channels < N) return project_single<Real, N / 2>(c, adjoint, t, channels, b);
    Vec<Real, N> sum[2 * n_rows] = {};
    for_rows<Real, N>(adjoint, channels, [&](int m, const Vec<Real, N>* rows) {
        Vec<Real, N> value, slope;
        polynomial(t, Coefficients<Real, N>{c + m, channels}, value, slope);
        for (int a = 0; a < n_rows; ++a) {
            sum[a] += value * rows[a];
            sum[n_rows + a] += slope * rows[a];
        }
    });
    set_lane_sums<2 * n_rows, Real, N>(sum, b);
}

// ------------------------------------------------------------------ gradient_k[m] += Σ_a w[k][a]·x[a][m] + u[k][a]·y[a][m]

template <class Real, int N = vector_lanes<Real>>
inline void spread(const Real* w, const Real* u, const Real* x, const Real* y, int channels, Real* gradient, int m = 0) {
    for (; m + N <= channels; m += N) {
        Vec<Real, N> x_m[n_rows], y_m[n_rows];
        for (int a = 0; a < n_rows; ++a) {
            x_m[a] = load<Real, N>(x + a * channels + m);
            y_m[a] = load<Real, N>(y + a * channels + m);
        }
        for (int k = 0; k < n_powers; ++k) {
            Real* at = gradient + k * channels + m;
            Vec<Real, N> sum = load<Real, N>(at), sum_dot = {};
            for (int a = 0; a < n_rows; ++a) {
                sum += w[n_rows * k + a] * x_m[a];
                sum_dot += u[n_rows * k + a] * y_m[a];
            }
            store<Real, N>(at, sum + sum_dot);
        }
    }
    if constexpr (N > 1)
        if (m < channels) spread<Real, N / 2>(w, u, x, y, channels, gradient, m);
}

// The same for a single pair.
template <class Real, int N = vector_lanes<Real>>
inline void spread_single(const Single<Real>& w, const Single<Real>& u, const Real* x, const Real* y, int channels,
                          Real* gradient, int m = 0) {
    for (; m + N <= channels; m += N) {
        Vec<Real, N> g = {}, slope = {};  // adjoints of G and of dG/dt
        for (int a = 0; a < n_rows; ++a) {
            const auto y_m = load<Real, N>(y + a * channels + m);
            g += w.value[a] * load<Real, N>(x + a * channels + m) + u.value[a] * y_m;
            slope += u.slope[a] * y_m;
        }
        Real power = 1, derivative = 0;  // t^k and k·t^{k−1}
        for (int k = 0; k < n_powers; ++k) {
            Real* at = gradient + k * channels + m;
            store<Real, N>(at, load<Real, N>(at) + power * g + derivative * slope);
            derivative = derivative * w.t + power;
            power *= w.t;
        }
    }
    if constexpr (N > 1)
        if (m < channels) spread_single<Real, N / 2>(w, u, x, y, channels, gradient, m);
}

}  // namespace dphpc
