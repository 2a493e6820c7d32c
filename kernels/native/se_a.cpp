#include "se_a_tape.h"

#include <algorithm>
#include <limits>

#include "parallel.h"

namespace dphpc {

template <class Real>
double SeATape<Real>::moments(const System& system, const Descriptor<Real>& d, int threads, Real* moments) {
    threads_ = useful_threads(threads, system.n_centers);
    const auto n = static_cast<std::size_t>(system.n_centers);
    if (centers_.size() < n) centers_.resize(n), plain_.resize(n), tangent_.resize(n);
    std::vector<double> largest(threads_);
    share_centers(system, threads_, [&](int part, std::int64_t first, std::int64_t last) {
        Reading<Real> reading;
        double own = -std::numeric_limits<double>::infinity();
        for (std::int64_t i = first; i < last; ++i) {
            centers_[i].read(system, d, system.centers[i], reading);
            own = std::max(own, centers_[i].largest);
            center_moments(d, centers_[i], plain_[i], moments + i * n_rows * d.channels);
        }
        largest[part] = own;
    });
    return *std::max_element(largest.begin(), largest.end());
}

template <class Real>
void SeATape<Real>::forces_into(const System& system, const Images& images, const Descriptor<Real>& d,
                                const Real* moments_adjoint, double* forces, double* center_virial) {
    of_all_.assign(3 * system.n_all, 0.0);
    double* const sums = of_all_.data();
    const auto bounds = equal_shares(system, threads_, own_work);
    std::vector<ForceShare*> shares(threads_);
#pragma omp parallel num_threads(threads_)
    {
        thread_local ForceShare own;
        const int team = team_size(), me = thread_id();
        shares[me] = &own;
        own.start(sums, nullptr, system.n_all, team == 1);
        std::vector<Real> b;
        // If the team is smaller than asked for, its threads take several shares each.
        for (int part = threads_ * me / team; part < threads_ * (me + 1) / team; ++part)
            for (std::int64_t i = bounds[part]; i < bounds[part + 1]; ++i) {
                const Center<Real>& center = centers_[i];
                own.reserve(center.n_pairs + 1);
                project_groups(center, moments_adjoint + i * n_rows * d.channels, d.channels, b);
                add_forces(center, system.centers[i], b.data(), d.scale, RoundTo(0.0), own, false,
                           center_virial + 9 * i);
            }
        add_shares(shares, me, team, sums, nullptr, system.n_all);
    }
    const std::int64_t n_local = system.n_all - images.n;
    for (std::int64_t k = 0; k < 3 * n_local; ++k) forces[k] += sums[k];
    for (std::int64_t g = 0; g < images.n; ++g)
        for (int a = 0; a < 3; ++a) forces[3 * images.owners[g] + a] += sums[3 * (n_local + g) + a];
}

template <class Real>
void SeATape<Real>::tangent(const System& system, const Images& images, const Descriptor<Real>& d,
                            const double* direction, const double* strain, Real* moments_dot) {
    of_all_.resize(3 * system.n_all);
    const std::int64_t n_local = system.n_all - images.n;
    std::copy_n(direction, 3 * n_local, of_all_.data());
    for (std::int64_t g = 0; g < images.n; ++g)
        std::copy_n(direction + 3 * images.owners[g], 3, &of_all_[3 * (n_local + g)]);
    const double* const moves = of_all_.data();
    share_centers(system, threads_, [&](int, std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t atom = system.centers[i];
            tangent_[i].form_tangent(centers_[i], moves, moves + 3 * atom, strain + 9 * i);
            Real* result = moments_dot + i * n_rows * d.channels;
            accumulate<Real, true>(centers_[i].groups(), tangent_[i].data(), d.channels, result);
            for (int m = 0; m < n_rows * d.channels; ++m) result[m] *= static_cast<Real>(d.scale);
        }
    });
}

template <class Real>
void SeATape<Real>::tangent_adjoint(const System& system, const Descriptor<Real>& d, const Real* moments_adjoint,
                                    const Real* moments_dot_adjoint, double* coefficients, double* empty) const {
    const std::size_t n_row = n_rows * d.channels;
    const std::size_t n_coefficients = d.grids.size() * d.n_intervals * n_powers * d.channels;
    const std::size_t n_empty = static_cast<std::size_t>(d.n_types) * d.n_types * d.channels;
    std::vector<std::vector<Real>> sums(threads_);
    share_centers(system, threads_, [&](int part, std::int64_t first, std::int64_t last) {
        sums[part].assign(n_coefficients + n_empty, Real(0));
        Real *const table_sum = sums[part].data(), *const empty_sum = table_sum + n_coefficients;
        std::vector<Real> bar(n_row), bar_dot(n_row);
        for (std::int64_t i = first; i < last; ++i) {
            const Center<Real>& center = centers_[i];
            for (std::size_t m = 0; m < n_row; ++m) {
                bar[m] = static_cast<Real>(d.scale) * moments_adjoint[i * n_row + m];
                bar_dot[m] = static_cast<Real>(d.scale) * moments_dot_adjoint[i * n_row + m];
            }
            const Real *w = plain_[i].data(), *u = tangent_[i].data();
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
#pragma omp parallel for simd schedule(static) num_threads(threads_)
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

template class SeATape<double>;
template class SeATape<float>;
template void features(const double*, std::int64_t, int, int, int, double*);
template void features(const float*, std::int64_t, int, int, int, float*);

}  // namespace dphpc
