// A step of Adam or AdamW, and the gradient's norm; dphpc/ops/adam/contract.py has the formulas.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "parallel.h"

namespace dphpc {

constexpr std::int64_t worth_sharing = 16384;  // values; fewer take less time than waking a thread

struct AdamStep {
    double rate, beta1, beta2, epsilon, decay;
    bool decoupled;
    std::int64_t count;  // number of steps, including this one
};

// Updates the values and their first and second moments, (n) each, in place.
template <class Real>
void adam_step(const AdamStep& s, std::int64_t n, const Real* gradient, [[maybe_unused]] int threads, Real* value,
               Real* first, Real* second) {
    const Real correction1 = static_cast<Real>(1.0 - std::pow(s.beta1, static_cast<double>(s.count)));
    const Real correction2 = static_cast<Real>(std::sqrt(1.0 - std::pow(s.beta2, static_cast<double>(s.count))));
    const Real step = static_cast<Real>(s.rate) / correction1, epsilon = static_cast<Real>(s.epsilon);
    const Real keep = static_cast<Real>(s.decoupled ? 1.0 - s.rate * s.decay : 1.0);
    const Real added = static_cast<Real>(s.decoupled ? 0.0 : s.decay);
    const Real beta1 = static_cast<Real>(s.beta1), beta2 = static_cast<Real>(s.beta2);
#pragma omp parallel for simd schedule(static) num_threads(threads) if (n >= worth_sharing)
    for (std::int64_t i = 0; i < n; ++i) {
        const Real g = gradient[i] + added * value[i];
        first[i] += (Real(1) - beta1) * (g - first[i]);
        second[i] = beta2 * second[i] + (Real(1) - beta2) * (g * g);
        value[i] = keep * value[i] - step * first[i] / (std::sqrt(second[i]) / correction2 + epsilon);
    }
}

// Σ x² over n values, with the same bits for any number of threads.
template <class Real>
double squared_norm(std::int64_t n, const Real* x, [[maybe_unused]] int threads) {
    const std::int64_t n_parts = (n + worth_sharing - 1) / worth_sharing;
    std::vector<double> parts(n_parts);
#pragma omp parallel for schedule(static) num_threads(threads) if (n_parts > 1)
    for (std::int64_t part = 0; part < n_parts; ++part) {
        const std::int64_t first = part * worth_sharing, last = std::min(n, first + worth_sharing);
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = first; i < last; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        parts[part] = sum;
    }
    return std::accumulate(parts.begin(), parts.end(), 0.0);
}

}  // namespace dphpc
