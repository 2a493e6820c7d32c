// A step of Adam or AdamW, and the gradient's norm; dphpc/ops/adam/contract.py has the formulas.
//
// Arrays stand behind one another, and each is divided among the threads.  So two threads that share a net's passes
// (sharing.h) each write those of its weights that they read, and read the gradients that they have written: a core is
// slow to write what another has read, four times as slow if they have no common cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "parallel.h"

namespace dphpc {

constexpr std::int64_t worth_sharing = 16384;  // values; fewer take less time than waking a thread
constexpr std::int64_t norm_part = 16384;      // values that are summed one by one

struct AdamStep {
    double rate, beta1, beta2, epsilon, decay;
    bool decoupled;
    std::int64_t count;  // number of steps, including this one
};

// Where the arrays end that stand behind one another.
struct Ends {
    const std::int64_t* at;
    std::size_t n;

    std::int64_t n_values() const { return n ? at[n - 1] : 0; }
    // Calls work(k, first, last) for this thread's part of each array k, in multiples of `unit` values.
    template <class Work>
    void for_own(std::int64_t unit, Work&& work) const {
        const std::int64_t id = thread_id(), size = team_size();
        for (std::size_t k = 0; k < n; ++k) {
            const std::int64_t first = k ? at[k - 1] : 0, n_units = (at[k] - first + unit - 1) / unit;
            const auto cut = [&](std::int64_t index) { return std::min(at[k], first + n_units * index / size * unit); };
            work(static_cast<std::int64_t>(k), cut(id), cut(id + 1));
        }
    }
};

// Updates the values and their first and second moments in place.
template <class Real>
void adam_step(const AdamStep& s, const Ends& ends, const Real* gradient, [[maybe_unused]] int threads, Real* value,
               Real* first, Real* second) {
    const Real correction1 = static_cast<Real>(1.0 - std::pow(s.beta1, static_cast<double>(s.count)));
    const Real correction2 = static_cast<Real>(std::sqrt(1.0 - std::pow(s.beta2, static_cast<double>(s.count))));
    const Real step = static_cast<Real>(s.rate) / correction1, epsilon = static_cast<Real>(s.epsilon);
    const Real keep = static_cast<Real>(s.decoupled ? 1.0 - s.rate * s.decay : 1.0);
    const Real added = static_cast<Real>(s.decoupled ? 0.0 : s.decay);
    const Real beta1 = static_cast<Real>(s.beta1), beta2 = static_cast<Real>(s.beta2);
#pragma omp parallel num_threads(threads) if (ends.n_values() >= worth_sharing)
    ends.for_own(1, [&](std::int64_t, std::int64_t from, std::int64_t to) {
#pragma omp simd
        for (std::int64_t i = from; i < to; ++i) {
            const Real g = gradient[i] + added * value[i];
            first[i] += (Real(1) - beta1) * (g - first[i]);
            second[i] = beta2 * second[i] + (Real(1) - beta2) * (g * g);
            value[i] = keep * value[i] - step * first[i] / (std::sqrt(second[i]) / correction2 + epsilon);
        }
    });
}

template <class Real>
double sum_of_squares(std::int64_t n, const Real* x) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return sum;
}

// Σ x² over all values, with the same bits for any number of threads.
template <class Real>
double squared_norm(const Ends& ends, const Real* x, [[maybe_unused]] int threads) {
    std::vector<double> parts(ends.n_values() / norm_part + ends.n + 1);
#pragma omp parallel num_threads(threads) if (ends.n_values() >= worth_sharing)
    ends.for_own(norm_part, [&](std::int64_t k, std::int64_t from, std::int64_t to) {
        for (std::int64_t first = from; first < to; first += norm_part)  // different parts have different places
            parts[first / norm_part + k] = sum_of_squares(std::min(norm_part, to - first), x + first);
    });
    return std::accumulate(parts.begin(), parts.end(), 0.0);
}

}  // namespace dphpc
