// The backward pass of a skip connection.
#pragma once

#include "layer.h"

namespace dphpc {

// adjoint (n, n_in) of a layer's input += the share of the adjoint of its output (n, n_out), for which null means 1.
extern "C" __global__ void add_skip(const Layer layer, long long n, const Real* output_adjoint, Real* adjoint) {
    const long long i = my_element();
    if (i < n * layer.n_in) adjoint[i] = with_skip(layer, i, output_adjoint, adjoint[i]);
}

}  // namespace dphpc
