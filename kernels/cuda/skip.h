// The way back along a skip connection.
#pragma once

#include "layer.h"

namespace dphpc {

// adjoint (n, n_in) of a layer's input += what comes from that of its output (n, n_out), which is 1 where null.
extern "C" __global__ void add_skip(const Layer layer, long long n, const Real* output_adjoint, Real* adjoint) {
    const long long i = my_element();
    if (i < n * layer.n_in) adjoint[i] = with_skip(layer, i, output_adjoint, adjoint[i]);
}

}  // namespace dphpc
