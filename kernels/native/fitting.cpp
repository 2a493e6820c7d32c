#include "fitting.h"

#include <cmath>
#include <stdexcept>

#include "activations.h"
#include "parallel.h"

namespace dphpc {
namespace {

template <class Real, class Activation>
void activate_rows(const Activation& activation, std::int64_t n, int n_out, const Real* bias, const Real* idt,
                   const Real* input, int n_in, [[maybe_unused]] int threads, Real* z, Real* slope) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * n_out > 4096)
    for (std::int64_t i = 0; i < n; ++i) {
        Real *z_row = z + i * n_out, *slope_row = slope + i * n_out;
        if (bias)
            for (int k = 0; k < n_out; ++k) z_row[k] += bias[k];
#pragma omp simd
        for (int k = 0; k < n_out; ++k) {
            Real y;
            slope_row[k] = activation(z_row[k], y);
            z_row[k] = y;
        }
        if (idt)
            for (int k = 0; k < n_out; ++k) z_row[k] *= idt[k], slope_row[k] *= idt[k];
        if (input)
            for (int from = 0; from < n_out; from += n_in)
                for (int k = 0; k < n_in; ++k) z_row[from + k] += input[i * n_in + k];
    }
}

}  // namespace

template <class Real>
void activate(const std::string& activation, double threshold, std::int64_t n, int n_out, const Real* bias,
              const Real* idt, const Real* input, int n_in, int threads, Real* z, Real* slope) {
    const auto run = [&](const auto& f) { activate_rows(f, n, n_out, bias, idt, input, n_in, threads, z, slope); };
    if (activation == "tanh") return run(Tanh{});
    if (activation == "linear" || activation == "none") return run(Linear{});
    if (activation == "sigmoid") return run(Sigmoid{});
    if (activation == "softplus") return run(Softplus{});
    if (activation == "relu") return run(Relu{});
    if (activation == "relu6") return run(Relu6{});
    if (activation == "gelu" || activation == "gelu_tf") return run(Gelu{});
    if (activation == "silu") return run(Silu{});
    if (activation == "silut" || activation == "custom_silu") {
        const double g = 1.0 / (1.0 + std::exp(-threshold));
        return run(Silut{threshold, threshold * g, g + threshold * g * (1.0 - g)});
    }
    throw std::invalid_argument("no activation function '" + activation + "'");
}

template void activate(const std::string&, double, std::int64_t, int, const double*, const double*, const double*, int,
                       int, double*, double*);
template void activate(const std::string&, double, std::int64_t, int, const float*, const float*, const float*, int,
                       int, float*, float*);

}  // namespace dphpc
