#include "se_a.h"

#include <algorithm>
#include <limits>

#include "center_sums.h"
#include "parallel.h"

namespace dphpc {
namespace {

constexpr std::int64_t own_work = 8;  // cost of a center besides its pairs, in units of the cost of a pair

// Calls work(part, first, last) for contiguous ranges of centers with nearly equal numbers of pairs.
template <class Work>
void share_centers(const System& system, int threads, Work&& work) {
    const auto bounds = equal_shares(system, threads, own_work);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; ++part) work(part, bounds[part], bounds[part + 1]);
}

}  // namespace

template <class Real>
double moments(const System& system, const Descriptor<Real>& d, int threads, Real* moments) {
    threads = useful_threads(threads, system.n_centers);
    std::vector<double> largest(threads);
    share_centers(system, threads, [&](int part, std::int64_t first, std::int64_t last) {
        Center<Real> center;
        Grouping<Real> grouping;
        Weights<Real> weights;
        double own = -std::numeric_limits<double>::infinity();
        for (std::int64_t i = first; i < last; ++i) {
            center.read(system, d, system.centers[i], grouping);
            own = std::max(own, center.largest);
            center_moments(d, center, weights, moments + i * n_rows * d.channels);
        }
        largest[part] = own;
    });
    return *std::max_element(largest.begin(), largest.end());
}

template <class Real>
void forces_into(const System& system, const Descriptor<Real>& d, int threads, const Real* moments_adjoint,
                 double* forces, double* center_virial, double* atom_virial) {
    threads = useful_threads(threads, system.n_centers);
    const auto bounds = equal_shares(system, threads, own_work);
    std::vector<ForceShare*> shares(threads);
#pragma omp parallel num_threads(threads)
    {
        thread_local ForceShare own;
        const int team = team_size(), me = thread_id();
        shares[me] = &own;
        own.start(forces, atom_virial, system.n_all, team == 1);
        Center<Real> center;
        Grouping<Real> grouping;
        std::vector<Real> b;
        // If the team is smaller than asked for, its threads take several shares each.
        for (int part = threads * me / team; part < threads * (me + 1) / team; ++part)
            for (std::int64_t i = bounds[part]; i < bounds[part + 1]; ++i) {
                center.read(system, d, system.centers[i], grouping);
                own.reserve(center.n_pairs + 1);
                project_groups(center, moments_adjoint + i * n_rows * d.channels, d.channels, b);
                add_forces(center, system.centers[i], b.data(), d.scale, RoundTo(0.0), own, atom_virial != nullptr,
                           center_virial + 9 * i);
            }
        add_shares(shares, me, team, forces, atom_virial, system.n_all);
    }
}

template <class Real>
void tangent(const System& system, const Descriptor<Real>& d, int threads, const double* direction,
             const double* strain, Real* moments_dot) {
    threads = useful_threads(threads, system.n_centers);
    share_centers(system, threads, [&](int, std::int64_t first, std::int64_t last) {
        Center<Real> center;
        Grouping<Real> grouping;
        Weights<Real> weights;
        for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t atom = system.centers[i];
            center.read(system, d, system.centers[i], grouping);
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
    std::vector<std::vector<Real>> sums(threads);
    share_centers(system, threads, [&](int part, std::int64_t first, std::int64_t last) {
        sums[part].assign(n_coefficients + n_empty, Real(0));
        Real *const table_sum = sums[part].data(), *const empty_sum = table_sum + n_coefficients;
        Center<Real> center;
        Grouping<Real> grouping;
        Weights<Real> plain, dot;
        std::vector<Real> bar(n_row), bar_dot(n_row);
        for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t atom = system.centers[i];
            center.read(system, d, system.centers[i], grouping);
            plain.form_plain(center);
            dot.form_tangent(center, direction, direction + 3 * atom, strain + 9 * i);
            for (std::size_t m = 0; m < n_row; ++m) {
                bar[m] = static_cast<Real>(d.scale) * moments_adjoint[i * n_row + m];
                bar_dot[m] = static_cast<Real>(d.scale) * moments_dot_adjoint[i * n_row + m];
            }
            const Real *w = plain.in_precision(), *u = dot.in_precision();
            for (int g = 0; g < center.n_groups(); ++g, w += n_weights, u += n_weights) {
                Real* gradient = table_sum + (center.coefficients(g) - d.coefficients);
                if (center.is_single(g)) {
                    const auto single = [](const Real* of) { return *reinterpret_cast<const Single<Real>*>(of); };
                    spread_single(single(w), single(u), bar.data(), bar_dot.data(), d.channels, gradient);
                } else {
                    spread(w, u, bar.data(), bar_dot.data(), d.channels, gradient);
                }
            }
            for (int t = 0; t < d.n_types; ++t) {
                Real* sum = empty_sum + (static_cast<std::size_t>(center.type) * d.n_types + t) * d.channels;
                for (int m = 0; m < d.channels; ++m) sum[m] += static_cast<Real>(center.free_slots()[t]) * bar[m];
            }
        }
    });
    const auto n = static_cast<std::int64_t>(n_coefficients);
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (std::int64_t k = 0; k < n; ++k) {
        double sum = 0.0;
        for (const auto& own : sums) sum += own[k];
        coefficients[k] = sum;
    }
    for (std::size_t k = 0; k < n_empty; ++k) {
        empty[k] = 0.0;
        for (const auto& own : sums) empty[k] += own[n_coefficients + k];
    }
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

#define DPHPC_INSTANTIATE(Real)                                                                                        \
    template double moments(const System&, const Descriptor<Real>&, int, Real*);                                       \
    template void forces_into(const System&, const Descriptor<Real>&, int, const Real*, double*, double*, double*);    \
    template void tangent(const System&, const Descriptor<Real>&, int, const double*, const double*, Real*);           \
    template void tangent_adjoint(const System&, const Descriptor<Real>&, int, const double*, const double*,           \
                                  const Real*, const Real*, double*, double*);                                         \
    template void features(const Real*, std::int64_t, int, int, int, Real*);

DPHPC_INSTANTIATE(double)
DPHPC_INSTANTIATE(float)

}  // namespace dphpc
