// What stands between the matrix products of a fitting net, forward and back.
//
// Defined in front of this text: Real, and PARTS, of which rows of a product's left factor consist (parts.h).
#include "layer.h"
#include "parts.h"

namespace dphpc {

// z (n, n_out): x·w, afterwards ∂y/∂z; x (n, n_in) in parts; y (n, n_out), is set, in parts but for the last layer's.
extern "C" __global__ void activate(const Layer layer, long long n, Real* z, const Real* x, Real* y, int is_last) {
    const long long i = my_element();
    if (i >= n * layer.n_out) return;
    const Place at = place_of(i, layer.n_out);
    Real value, slope = act(layer, layer.bias ? z[i] + layer.bias[at.column] : z[i], value);
    if (layer.idt) value *= layer.idt[at.column], slope *= layer.idt[at.column];
    if (layer.skip) value += whole(x + at.row * (PARTS * layer.n_in), layer.n_in, at.column % layer.n_in);
    z[i] = slope;
    if (is_last) {
        y[i] = value;
    } else {
        lay_parts(y + at.row * (PARTS * layer.n_out), layer.n_out, at.column, value);
    }
}

// adjoint (n, n_in) of a layer's input holds what comes through the weights: adds what comes by the skip connection from
// the adjoint of its output (n, n_out), which is 1 where null.  Its product with the slope (n, n_in) of the layer before
// is laid down in parts, where there is such a layer.
extern "C" __global__ void pass_back(const Layer layer, long long n, const Real* output_adjoint, Real* adjoint,
                                     const Real* slope, Real* factor) {
    const long long i = my_element();
    if (i >= n * layer.n_in) return;
    const Real sum = adjoint[i] = with_skip(layer, i, output_adjoint, adjoint[i]);
    if (!slope) return;
    const Place at = place_of(i, layer.n_in);
    lay_parts(factor + at.row * (PARTS * layer.n_in), layer.n_in, at.column, slope[i] * sum);
}

}  // namespace dphpc
