// A layer of a network between its matrix products; `Real` is defined in front of this text.
#pragma once

#include "activations.h"
#include "elements.h"

namespace dphpc {

// y = act(x·w + bias)·idt + skip copies of x side by side; the twin is in dphpc/ops/structs.py.
struct Layer {
    const Real *bias, *idt;  // (n_out), or null
    int n_in, n_out, skip, activation;
    Silut silut;
};

// act(z) in y, its slope as the result; the order of dphpc.ops.structs.ACTIVATIONS.
__device__ inline Real act(const Layer& layer, Real z, Real& y) {
    switch (layer.activation) {
        case 1: return Tanh{}(z, y);
        case 2: return Sigmoid{}(z, y);
        case 3: return Softplus{}(z, y);
        case 4: return Relu{}(z, y);
        case 5: return Relu6{}(z, y);
        case 6: return Gelu{}(z, y);
        case 7: return Silu{}(z, y);
        case 8: return layer.silut(z, y);
        default: return Linear{}(z, y);
    }
}

// Element i of the adjoint (n, n_in) of a layer's input: `adjoint`, which comes through the weights, and by the skip
// connection a share of the adjoint of its output (n, n_out), for which null means 1.
__device__ inline Real with_skip(const Layer& layer, long long i, const Real* output_adjoint, Real adjoint) {
    if (!layer.skip) return adjoint;
    const Place at = place_of(i, layer.n_in);
    const Real* above = output_adjoint ? output_adjoint + at.row * layer.n_out + at.column : nullptr;
    for (int k = 0; k < layer.skip; ++k) adjoint += above ? above[k * layer.n_in] : Real(1);
    return adjoint;
}

// The value of an activation and its first three derivatives at z.
struct Derivatives {
    Real value, slope, curvature, third;
};

template <class Function>
__device__ inline Derivatives derivatives_of(const Function& function, Real z) {
    Derivatives at;
    at.slope = function(z, at.value);
    at.curvature = function.curvature(z, at.value, at.slope);
    at.third = function.third(z, at.value, at.slope, at.curvature);
    return at;
}

__device__ inline Derivatives derivatives(const Layer& layer, Real z) {
    switch (layer.activation) {
        case 1: return derivatives_of(Tanh{}, z);
        case 2: return derivatives_of(Sigmoid{}, z);
        case 3: return derivatives_of(Softplus{}, z);
        case 4: return derivatives_of(Relu{}, z);
        case 5: return derivatives_of(Relu6{}, z);
        case 6: return derivatives_of(Gelu{}, z);
        case 7: return derivatives_of(Silu{}, z);
        case 8: return derivatives_of(layer.silut, z);
        default: return derivatives_of(Linear{}, z);
    }
}

}  // namespace dphpc
