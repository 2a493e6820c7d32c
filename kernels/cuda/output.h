// The output of a layer, given its matrix product.
#pragma once

#include "layer.h"
#include "parts.h"

namespace dphpc {

// Sets an output y of a layer from z, the product of the weights with a row x of its input (in parts); returns ∂y/∂z.
__device__ inline Real output(const Layer& layer, int column, Real z, const Real* x, Real& y) {
    Real slope = act(layer, layer.bias ? z + layer.bias[column] : z, y);
    if (layer.idt) y *= layer.idt[column], slope *= layer.idt[column];
    if (layer.skip) y += whole(x, layer.n_in, column % layer.n_in);
    return slope;
}

}  // namespace dphpc
