#include "se_a.h"

#include <algorithm>

#include "center.h"
#include "parallel.h"
#include "scatter.h"

namespace dphpc {
namespace {

// Calls work(thread, first, last) for contiguous ranges of centers with equal numbers of pairs.
template <class Work>
void share_centers(const System& system, int threads, Work&& work) {
    const auto bounds = equal_shares(system.centers, system.n_centers, system.offsets, threads);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; ++part) work(part, bounds[part], bounds[part + 1]);
}

int useful_threads(int threads, std::int64_t n_centers) {
    return has_openmp ? static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, n_centers / 4))) : 1;
}

// What the channel loops need of each group: weights (6, 4) summed over its pairs, or a `Single` in their place.
template <class Real>
class Weights {
  public:
    static_assert(sizeof(Single<double>) <= n_weights * sizeof(double));

    void form_plain(const Center<Real>& center) {
        form(center, [&](int p, const double* row, double* w) {
            const double t = center.pairs.t[p];
            if (center.is_single(center.pairs.group[p])) {
                *reinterpret_cast<Single<double>*>(w) = {{row[0], row[1], row[2], row[3]}, {0, 0, 0, 0}, t};
            } else {
                add_weights(row, t, w);
            }
        });
    }

    // ṙ of a pair gives row˙ = (s′ ṙ·x/r, v′ (ṙ·x/r) x + v ṙ) and ṫ = row˙₀·dt/ds.
    void form_tangent(const Center<Real>& center, const double* direction, const double* direction_i,
                      const double* strain) {
        const PairArrays& q = center.pairs;
        form(center, [&](int p, const double* row, double* w) {
            const double x[3] = {q.x[p], q.y[p], q.z[p]}, t = q.t[p];
            const double* direction_j = direction + 3 * static_cast<std::int64_t>(q.neighbor[p]);
            double r_dot[3], along = 0.0;
            for (int a = 0; a < 3; ++a) {
                const double* e = strain + 3 * a;
                r_dot[a] = direction_j[a] - direction_i[a] + e[0] * x[0] + e[1] * x[1] + e[2] * x[2];
                along += r_dot[a] * x[a];
            }
            double row_dot[n_rows] = {q.ds_r[p] * along};
            for (int a = 0; a < 3; ++a) row_dot[a + 1] = q.dv_r[p] * along * x[a] + q.v[p] * r_dot[a];
            const double t_dot = row_dot[0] * q.inverse_step[p];
            if (center.is_single(q.group[p])) {
                *reinterpret_cast<Single<double>*>(w) = {{row_dot[0], row_dot[1], row_dot[2], row_dot[3]},
                                                         {row[0] * t_dot, row[1] * t_dot, row[2] * t_dot, row[3] * t_dot},
                                                         t};
            } else {
                add_tangent_weights(row, row_dot, t, t_dot, w);
            }
        });
    }

    const double* of(int group) const { return sums_.data() + n_weights * group; }
    const Single<double>& single(int group) const { return *reinterpret_cast<const Single<double>*>(of(group)); }

    const Real* in_precision() {
        if constexpr (std::is_same_v<Real, double>) {
            return sums_.data();
        } else {
            rounded_.assign(sums_.begin(), sums_.end());
            return rounded_.data();
        }
    }

  private:
    template <class Add>
    void form(const Center<Real>& center, Add&& add) {
        sums_.assign(n_weights * center.n_groups(), 0.0);
        for (int p = 0; p < center.n_pairs; ++p) {
            double row[n_rows];
            center.row(p, row);
            add(p, row, sums_.data() + n_weights * center.pairs.group[p]);
        }
    }

    std::vector<double> sums_;
    std::vector<Real> rounded_;
};

template <class Real>
void add_empty_slots(const Descriptor<Real>& d, const Center<Real>& center, Real* moments) {
    if (d.davg[center.type] == 0.0) return;  // then a missing slot is a row of zeros
    for (int t = 0; t < d.n_types; ++t) {
        const Real free = static_cast<Real>(center.free_slots()[t]);
        const Real* empty = d.empty + (static_cast<std::size_t>(center.type) * d.n_types + t) * d.channels;
        if (free == Real(0)) continue;
        for (int m = 0; m < d.channels; ++m) moments[m] += free * empty[m];
    }
}

// The four entries of a row, in double precision.
using Rows = Vec<double, n_rows>;

template <class Real>
Rows load_rows(const Real* p) {
    return __builtin_convertvector((load<Real, n_rows>(p)), Rows);
}

// B of all groups (channels.h) for one center's Ā.
template <class Real>
void project_groups(const Center<Real>& center, const Real* adjoint, int channels, std::vector<Real>& b) {
    b.resize(n_weights * center.n_groups());
    for (int g = 0; g < center.n_crowded; ++g)
        project(center.coefficients(g), adjoint, channels, b.data() + n_weights * g);
    for (int p = 0; p < center.n_pairs; ++p) {
        const int g = center.pairs.group[p];
        if (center.is_single(g))
            project_single(center.coefficients(g), adjoint, static_cast<Real>(center.pairs.t[p]), channels,
                           b.data() + n_weights * g);
    }
}

// Adds one center's forces and virials, given B of its groups.
template <class Real>
void add_forces(const Center<Real>& center, std::int32_t atom, const Real* b, double scale, ForceShare& share,
                bool with_virial, double* center_virial) {
    const PairArrays& q = center.pairs;
    double total[3] = {0, 0, 0}, virial[9] = {0};
    for (int p = 0; p < center.n_pairs; ++p) {
        double row[n_rows];
        center.row(p, row);
        const Real* b_group = b + n_weights * q.group[p];
        const auto b_row = [&](int k) { return load_rows(b_group + n_rows * k); };
        Rows adjoint, slope;  // ∂E_i/∂row and its derivative by t
        if (center.is_single(q.group[p])) {
            adjoint = b_row(0), slope = b_row(1);
        } else {
            polynomial(q.t[p], b_row, adjoint, slope);
        }
        const double by_t = row[0] * slope[0] + row[1] * slope[1] + row[2] * slope[2] + row[3] * slope[3];
        const double x[3] = {q.x[p], q.y[p], q.z[p]};
        const double radial = (adjoint[0] + by_t * q.inverse_step[p]) * q.ds_r[p] +
                              (adjoint[1] * x[0] + adjoint[2] * x[1] + adjoint[3] * x[2]) * q.dv_r[p];
        double gradient[3];  // ∂E_i/∂r_ij
        for (int a = 0; a < 3; ++a) gradient[a] = scale * (radial * x[a] + q.v[p] * adjoint[a + 1]);
        const std::int64_t place = share.place(q.neighbor[p]);
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

}  // namespace

template <class Real>
double moments(const System& system, const Descriptor<Real>& d, int threads, Real* moments) {
    threads = useful_threads(threads, system.n_centers);
    std::vector<double> largest(threads);
    share_centers(system, threads, [&](int part, std::int64_t first, std::int64_t last) {
        Center<Real> center(d);
        Weights<Real> weights;
        for (std::int64_t i = first; i < last; ++i) {
            center.read(system, system.centers[i]);
            weights.form_plain(center);
            Real* result = moments + i * n_rows * d.channels;
            accumulate<Real, false>(center.groups(), weights.in_precision(), d.channels, result);
            add_empty_slots(d, center, result);
            for (int m = 0; m < n_rows * d.channels; ++m) result[m] *= static_cast<Real>(d.scale);
        }
        largest[part] = center.largest;
    });
    return *std::max_element(largest.begin(), largest.end());
}

template <class Real>
void forces_into(const System& system, const Descriptor<Real>& d, int threads, const Real* moments_adjoint,
                 double* forces, double* center_virial, double* atom_virial) {
    threads = useful_threads(threads, system.n_centers);
    const auto bounds = equal_shares(system.centers, system.n_centers, system.offsets, threads);
    std::vector<ForceShare*> shares(threads);
#pragma omp parallel num_threads(threads)
    {
        thread_local ForceShare own;
        const int team = team_size(), me = thread_id();
        const bool direct = team == 1;
        shares[me] = &own;
        own.start(forces, atom_virial, system.n_all, direct);
        Center<Real> center(d);
        std::vector<Real> b;
        // A team smaller than asked for takes several shares each.
        for (int part = threads * me / team; part < threads * (me + 1) / team; ++part)
            for (std::int64_t i = bounds[part]; i < bounds[part + 1]; ++i) {
                center.read(system, system.centers[i]);
                own.reserve(center.n_pairs + 1);
                project_groups(center, moments_adjoint + i * n_rows * d.channels, d.channels, b);
                add_forces(center, system.centers[i], b.data(), d.scale, own, atom_virial != nullptr,
                           center_virial + 9 * i);
            }
        if (!direct) {
#pragma omp barrier
            for (int t = 0; t < team; ++t)
                shares[t]->add_to(forces, atom_virial, system.n_all * me / team, system.n_all * (me + 1) / team);
#pragma omp barrier
            own.finish();
        }
    }
}

template <class Real>
void tangent(const System& system, const Descriptor<Real>& d, int threads, const double* direction,
             const double* strain, Real* moments_dot) {
    threads = useful_threads(threads, system.n_centers);
    share_centers(system, threads, [&](int, std::int64_t first, std::int64_t last) {
        Center<Real> center(d);
        Weights<Real> weights;
        for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t atom = system.centers[i];
            center.read(system, system.centers[i]);
            weights.form_tangent(center, direction, direction + 3 * atom, strain + 9 * i);
            Real* result = moments_dot + i * n_rows * d.channels;
            accumulate<Real, true>(center.groups(), weights.in_precision(), d.channels, result);
            for (int m = 0; m < n_rows * d.channels; ++m) result[m] *= static_cast<Real>(d.scale);
        }
    });
}

template <class Real>
void tangent_adjoint(const System& system, const Descriptor<Real>& d, int threads, const double* direction,
                     const double* strain, const Real* moments_adjoint, const Real* moments_dot_adjoint,
                     double* coefficients, double* empty) {
    threads = useful_threads(threads, system.n_centers);
    const std::size_t n_row = n_rows * d.channels;
    const std::size_t n_coefficients = d.grids.size() * d.n_intervals * n_powers * d.channels;
    const std::size_t n_empty = static_cast<std::size_t>(d.n_types) * d.n_types * d.channels;
    // The first thread sums into the result, the others into arrays of their own.
    std::vector<std::vector<double>> own(threads - 1);
    share_centers(system, threads, [&](int part, std::int64_t first, std::int64_t last) {
        if (part > 0) own[part - 1].assign(n_coefficients + n_empty, 0.0);
        double* table_sum = part > 0 ? own[part - 1].data() : coefficients;
        double* empty_sum = part > 0 ? table_sum + n_coefficients : empty;
        if (part == 0) std::fill_n(table_sum, n_coefficients, 0.0), std::fill_n(empty_sum, n_empty, 0.0);
        Center<Real> center(d);
        Weights<Real> plain, dot;
        std::vector<double> bar(n_row), bar_dot(n_row);
        for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t atom = system.centers[i];
            center.read(system, system.centers[i]);
            plain.form_plain(center);
            dot.form_tangent(center, direction, direction + 3 * atom, strain + 9 * i);
            for (std::size_t m = 0; m < n_row; ++m) {
                bar[m] = d.scale * moments_adjoint[i * n_row + m];
                bar_dot[m] = d.scale * moments_dot_adjoint[i * n_row + m];
            }
            for (int g = 0; g < center.n_groups(); ++g) {
                double* gradient = table_sum + (center.coefficients(g) - d.coefficients);
                if (center.is_single(g)) {
                    spread_single(plain.single(g), dot.single(g), bar.data(), bar_dot.data(), d.channels, gradient);
                } else {
                    spread(plain.of(g), dot.of(g), bar.data(), bar_dot.data(), d.channels, gradient);
                }
            }
            for (int t = 0; t < d.n_types; ++t) {
                double* sum = empty_sum + (static_cast<std::size_t>(center.type) * d.n_types + t) * d.channels;
                for (int m = 0; m < d.channels; ++m) sum[m] += center.free_slots()[t] * bar[m];
            }
        }
    });
    const auto n = static_cast<std::int64_t>(n_coefficients);
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (std::int64_t k = 0; k < n; ++k)
        for (int part = 1; part < threads; ++part) coefficients[k] += own[part - 1][k];
    for (std::size_t k = 0; k < n_empty; ++k)
        for (int part = 1; part < threads; ++part) empty[k] += own[part - 1][n_coefficients + k];
}

template <class Real>
void features(const Real* moments, std::int64_t n, int channels, int axis, [[maybe_unused]] int threads,
              Real* features) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (std::int64_t i = 0; i < n; ++i) {
        const Real* a = moments + i * n_rows * channels;
        Real* out = features + i * channels * axis;
        for (int m = 0; m < channels; ++m, out += axis) {
            const Real a0 = a[m], a1 = a[channels + m], a2 = a[2 * channels + m], a3 = a[3 * channels + m];
#pragma omp simd
            for (int k = 0; k < axis; ++k)
                out[k] = a0 * a[k] + a1 * a[channels + k] + a2 * a[2 * channels + k] + a3 * a[3 * channels + k];
        }
    }
}

template <class Real>
void features_adjoint(const Real* moments, const Real* adjoint, std::int64_t n, int channels, int axis,
                      [[maybe_unused]] int threads, Real* result) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<Real> first(n_rows * axis);  // share of the columns below `axis`
#pragma omp for schedule(static)
        for (std::int64_t i = 0; i < n; ++i) {
            const Real* a = moments + i * n_rows * channels;
            Real* out = result + i * n_rows * channels;
            std::fill(first.begin(), first.end(), Real(0));
            for (int m = 0; m < channels; ++m) {
                const Real* y = adjoint + (i * channels + m) * axis;
                Real sum[n_rows] = {};
#pragma omp simd reduction(+ : sum)
                for (int k = 0; k < axis; ++k)
                    for (int r = 0; r < n_rows; ++r) {
                        sum[r] += y[k] * a[r * channels + k];
                        first[r * axis + k] += y[k] * a[r * channels + m];
                    }
                for (int r = 0; r < n_rows; ++r) out[r * channels + m] = sum[r];
            }
            for (int r = 0; r < n_rows; ++r)
                for (int k = 0; k < axis; ++k) out[r * channels + k] += first[r * axis + k];
        }
    }
}

#define DPHPC_INSTANTIATE(Real)                                                                                        \
    template double moments(const System&, const Descriptor<Real>&, int, Real*);                                       \
    template void forces_into(const System&, const Descriptor<Real>&, int, const Real*, double*, double*, double*);    \
    template void tangent(const System&, const Descriptor<Real>&, int, const double*, const double*, Real*);           \
    template void tangent_adjoint(const System&, const Descriptor<Real>&, int, const double*, const double*,           \
                                  const Real*, const Real*, double*, double*);                                         \
    template void features(const Real*, std::int64_t, int, int, int, Real*);                                           \
    template void features_adjoint(const Real*, const Real*, std::int64_t, int, int, int, Real*);

DPHPC_INSTANTIATE(double)
DPHPC_INSTANTIATE(float)

}  // namespace dphpc
