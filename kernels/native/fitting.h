// What a layer of the fitting net does around its matrix product.
#pragma once

#include <cstdint>
#include <string>

namespace dphpc {

// z (n, n_out) becomes act(z + bias)·idt + skip and slope (n, n_out) act′(z + bias)·idt.  `bias` and `idt` (n_out) may
// be null.  `input` (n, n_in) is added n_out/n_in times side by side; null: no skip connection.
// Throws std::invalid_argument for an unknown activation; `threshold` belongs to silut.
template <class Real>
void activate(const std::string& activation, double threshold, std::int64_t n, int n_out, const Real* bias,
              const Real* idt, const Real* input, int n_in, int threads, Real* z, Real* slope);

}  // namespace dphpc
