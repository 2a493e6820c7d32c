// What a layer makes of its product.
#pragma once

#include "layer.h"
#include "parts.h"

namespace dphpc {

// An output of a layer in y, from what the weights make of a row x of its input, in parts; ∂y/∂z as the result.
__device__ inline Real output(const Layer& layer, int column, Real z, const Real* x, Real& y) {
    Real slope = act(layer, layer.bias ? z + layer.bias[column] : z, y);
    if (layer.idt) y *= layer.idt[column], slope *= layer.idt[column];
    if (layer.skip) y += whole(x, layer.n_in, column % layer.n_in);
    return slope;
}

}  // namespace dphpc
