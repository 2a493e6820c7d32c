// The way back along a skip connection.
#pragma once

#include "layer.h"

namespace dphpc {

// adjoint (n, n_in) of a layer's input += what comes from that of its output (n, n_out), which is 1 where null.
extern "C" __global__ void add_skip(const Layer layer, long long n, const Real* output_adjoint, Real* adjoint) {
    const long long i = my_element();
    if (i >= n * layer.n_in) return;
    const Real* above = output_adjoint ? output_adjoint + i / layer.n_in * layer.n_out + i % layer.n_in : nullptr;
    Real sum = adjoint[i];
    for (int k = 0; k < layer.skip; ++k) sum += above ? above[k * layer.n_in] : Real(1);
    adjoint[i] = sum;
}

}  // namespace dphpc
