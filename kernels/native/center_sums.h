// Sums over the pairs of one center: its moments, and the forces on it and its neighbors from the moments' adjoint.
#pragma once

#include "center.h"
#include "exact_sum.h"
#include "scatter.h"

namespace dphpc {

// Input of the channel loops for each group: weights (6, 4) summed over its pairs, or a `Single` in their place.
template <class Real>
class Weights {
  public:
    static_assert(sizeof(Single<double>) <= n_weights * sizeof(double));

    void form_plain(const Center<Real>& center) {
        form(center, [&](const Pair& q, const double* row, double* w) {
            if (center.is_single(q.group)) {
                *reinterpret_cast<Single<double>*>(w) = {{row[0], row[1], row[2], row[3]}, {0, 0, 0, 0}, q.t};
            } else {
                add_weights(row, q.t, w);
            }
        });
    }

    // Along a direction, a pair with displacement x changes by ṙ, its row by row˙ = (s′ ṙ·x/r, v′ (ṙ·x/r) x + v ṙ), and
    // t by ṫ = row˙₀·dt/ds.
    void form_tangent(const Center<Real>& center, const double* direction, const double* direction_i,
                      const double* strain) {
        form(center, [&](const Pair& q, const double* row, double* w) {
            const double x[3] = {q.x, q.y, q.z}, t = q.t;
            const double* direction_j = direction + 3 * static_cast<std::int64_t>(q.neighbor);
            double r_dot[3], along = 0.0;
            for (int a = 0; a < 3; ++a) {
                const double* e = strain + 3 * a;
                r_dot[a] = direction_j[a] - direction_i[a] + e[0] * x[0] + e[1] * x[1] + e[2] * x[2];
                along += r_dot[a] * x[a];
            }
            double row_dot[n_rows] = {q.ds_r * along};
            for (int a = 0; a < 3; ++a) row_dot[a + 1] = q.dv_r * along * x[a] + q.v * r_dot[a];
            const double t_dot = row_dot[0] * q.inverse_step;
            if (center.is_single(q.group)) {
                *reinterpret_cast<Single<double>*>(w) = {{row_dot[0], row_dot[1], row_dot[2], row_dot[3]},
                                                         {row[0] * t_dot, row[1] * t_dot, row[2] * t_dot, row[3] * t_dot},
                                                         t};
            } else {
                add_tangent_weights(row, row_dot, t, t_dot, w);
            }
        });
    }

    const Real* data() const { return weights_.data(); }

  private:
    template <class Add>
    void form(const Center<Real>& center, Add&& add) {
        if constexpr (std::is_same_v<Real, double>) {
            sum(center, add, weights_);
        } else {
            thread_local std::vector<double> sums;
            sum(center, add, sums);
            weights_.assign(sums.begin(), sums.end());
        }
    }

    template <class Add>
    static void sum(const Center<Real>& center, Add&& add, std::vector<double>& sums) {
        sums.assign(n_weights * center.n_groups(), 0.0);
        for (int p = 0; p < center.n_pairs; ++p) {
            const Pair& q = center.pairs[p];
            double row[n_rows];
            center.row(q, row);
            add(q, row, sums.data() + n_weights * q.group);
        }
    }

    std::vector<Real> weights_;
};

template <class Real>
inline void add_empty_slots(const Descriptor<Real>& d, const Center<Real>& center, Real* moments) {
    if (d.davg[center.type] == 0.0) return;  // the row of an empty slot is then zero
    for (int t = 0; t < d.n_types; ++t) {
        const Real free = static_cast<Real>(center.free_slots()[t]);
        const Real* empty = d.empty + (static_cast<std::size_t>(center.type) * d.n_types + t) * d.channels;
        if (free == Real(0)) continue;
        for (int m = 0; m < d.channels; ++m) moments[m] += free * empty[m];
    }
}

// Sets the moments (4, M) of a center that has been read.
template <class Real>
inline void center_moments(const Descriptor<Real>& d, const Center<Real>& center, Weights<Real>& weights, Real* moments) {
    weights.form_plain(center);
    accumulate<Real, false>(center.groups(), weights.data(), d.channels, moments);
    add_empty_slots(d, center, moments);
    for (int m = 0; m < n_rows * d.channels; ++m) moments[m] *= static_cast<Real>(d.scale);
}

// The four entries of a row, in double precision.
using Rows = Vec<double, n_rows>;

template <class Real>
inline Rows load_rows(const Real* p) {
    return __builtin_convertvector((load<Real, n_rows>(p)), Rows);
}

// Sets b of all groups (channels.h) from the adjoint (4, M) of a center's moments.
template <class Real>
inline void project_groups(const Center<Real>& center, const Real* adjoint, int channels, std::vector<Real>& b) {
    b.resize(n_weights * center.n_groups());
    for (int g = 0; g < center.n_crowded; ++g)
        project(center.coefficients(g), adjoint, channels, b.data() + n_weights * g);
    for (int p = 0; p < center.n_pairs; ++p) {
        const int g = center.pairs[p].group;
        if (center.is_single(g))
            project_single(center.coefficients(g), adjoint, static_cast<Real>(center.pairs[p].t), channels,
                           b.data() + n_weights * g);
    }
}

// Adds the forces of a center's pairs, each rounded by `rounded`, and their virials, given `b` of its groups.
template <class Real>
inline void add_forces(const Center<Real>& center, std::int32_t atom, const Real* b, double scale, RoundTo rounded,
                       ForceShare& share, bool with_virial, double* center_virial) {
    double total[3] = {0, 0, 0}, virial[9] = {0};
    for (int p = 0; p < center.n_pairs; ++p) {
        const Pair& q = center.pairs[p];
        double row[n_rows];
        center.row(q, row);
        const Real* b_group = b + n_weights * q.group;
        const auto b_row = [&](int k) { return load_rows(b_group + n_rows * k); };
        Rows adjoint, slope;  // ∂E_i/∂row and its t-derivative
        if (center.is_single(q.group)) {
            adjoint = b_row(0), slope = b_row(1);
        } else {
            polynomial(q.t, b_row, adjoint, slope);
        }
        const double by_t = row[0] * slope[0] + row[1] * slope[1] + row[2] * slope[2] + row[3] * slope[3];
        const double x[3] = {q.x, q.y, q.z};
        const double radial = (adjoint[0] + by_t * q.inverse_step) * q.ds_r +
                              (adjoint[1] * x[0] + adjoint[2] * x[1] + adjoint[3] * x[2]) * q.dv_r;
        double gradient[3];  // ∂E_i/∂r_ij
        for (int a = 0; a < 3; ++a) gradient[a] = rounded(scale * (radial * x[a] + q.v * adjoint[a + 1]));
        const std::int64_t place = share.place(q.neighbor);
        double* force = share.force(place);
        for (int a = 0; a < 3; ++a) force[a] -= gradient[a], total[a] += gradient[a];
        for (int a = 0; a < 3; ++a)
            for (int c = 0; c < 3; ++c) virial[3 * a + c] -= gradient[a] * x[c];
        if (with_virial) {
            double* atom_virial = share.virial(place);
            for (int a = 0; a < 3; ++a)
                for (int c = 0; c < 3; ++c) atom_virial[3 * a + c] -= gradient[a] * x[c];
        }
    }
    double* force = share.force(share.place(atom));
    for (int a = 0; a < 3; ++a) force[a] += total[a];
    for (int i = 0; i < 9; ++i) center_virial[i] = virial[i];
}

}  // namespace dphpc
