// How the pairs of one center act on the M channels.
//
// Pairs in one interval of a table share its coefficients c_k: Σ_p row_p ⊗ G(s_p) = Σ_k w_k ⊗ c_k with the (6, 4) weights
// w_k = Σ_p row_p t_p^k, so pairs are summed before the channels are touched.  The same holds along a direction, with
// ẇ_k = Σ_p (row˙_p t^k + row_p k t^{k−1} ṫ); and with B_k = Σ_m c_k[m] Ā[m] the derivative by a row is Σ_k t^k B_k.
#pragma once

#include "hd.h"

namespace dphpc {

constexpr int n_powers = 6;  // quintic pieces
constexpr int n_rows = 4;    // s, x, y, z
constexpr int n_weights = n_powers * n_rows;

// Σ_k c_k t^k and its derivative by t, c_k = coefficient(k): a number, or one for each channel or row.
template <class Value, class T, class Coefficient>
DPHPC_HD void polynomial(T t, const Coefficient& coefficient, Value& value, Value& slope) {
    slope = coefficient(n_powers - 1);
    value = slope * t + coefficient(n_powers - 2);
#pragma GCC unroll 6
    for (int k = n_powers - 3; k >= 0; --k) {
        slope = slope * t + value;
        value = value * t + coefficient(k);
    }
}

// The value alone.
template <class Value, class T, class Coefficient>
DPHPC_HD Value polynomial(T t, const Coefficient& coefficient) {
    Value value = coefficient(n_powers - 1);
#pragma GCC unroll 6
    for (int k = n_powers - 2; k >= 0; --k) value = value * t + coefficient(k);
    return value;
}

// weights[k][a] += row[a]·t^k
template <class T>
DPHPC_HD void add_weights(const T* row, T t, T* weights) {
    T power = T(1);
    for (int k = 0; k < n_powers; ++k) {
        for (int a = 0; a < n_rows; ++a) weights[n_rows * k + a] += row[a] * power;
        power *= t;
    }
}

// weights[k][a] += row_dot[a]·t^k + row[a]·k·t^{k−1}·t_dot
template <class T>
DPHPC_HD void add_tangent_weights(const T* row, const T* row_dot, T t, T t_dot, T* weights) {
    T power = T(1), slope = T(0);  // t^k and its derivative along the direction
    for (int k = 0; k < n_powers; ++k) {
        for (int a = 0; a < n_rows; ++a) weights[n_rows * k + a] += row_dot[a] * power + row[a] * slope;
        slope = slope * t + power * t_dot;
        power *= t;
    }
}

}  // namespace dphpc
