// What stands between the matrix products of a fitting net, forward and back; `Real` is defined in front of this text.
#include "layer.h"

namespace dphpc {

// z (n, n_out): x·w, afterwards ∂y/∂z; x (n, n_in); y (n, n_out), is set.
extern "C" __global__ void activate(const Layer layer, long long n, Real* z, const Real* x, Real* y) {
    const long long i = my_element();
    if (i >= n * layer.n_out) return;
    const Place at = place_of(i, layer.n_out);
    Real value, slope = act(layer, layer.bias ? z[i] + layer.bias[at.column] : z[i], value);
    if (layer.idt) value *= layer.idt[at.column], slope *= layer.idt[at.column];
    if (layer.skip) value += x[at.row * layer.n_in + at.column % layer.n_in];
    y[i] = value;
    z[i] = slope;
}

// adjoint (n, n_in) of a layer's input holds what comes through the weights: adds what comes by the skip connection from
// the adjoint of its output (n, n_out), which is 1 where null.  The slope (n, n_in) of the layer before is multiplied.
extern "C" __global__ void pass_back(const Layer layer, long long n, const Real* output_adjoint, Real* adjoint, Real* slope) {
    const long long i = my_element();
    if (i >= n * layer.n_in) return;
    const Real sum = adjoint[i] = with_skip(layer, i, output_adjoint, adjoint[i]);
    if (slope) slope[i] *= sum;
}

}  // namespace dphpc
