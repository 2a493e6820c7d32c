// The operations between a fitting net's matrix products in training; `Real` is defined in front of this text.
//
// Names and formulas are those of dphpc/ops/fitting/reference.py: value x → z → y, adjoint p, tangent ẋ → ż → ẏ, and q.
// Arrays are (n, n_out) unless noted otherwise; one element for each thread.
#include "skip.h"

namespace dphpc {

// z is x·w, and is overwritten by act′(z).  Sets y, act″(z), and act(z) if `activated` is given; x (n, n_in).
extern "C" __global__ void layer_forward(const Layer layer, long long n, Real* z, const Real* x, Real* y, Real* curvature,
                                   Real* activated) {
    const long long i = my_element();
    if (i >= n * layer.n_out) return;
    const Place here = place_of(i, layer.n_out);
    const Derivatives at = derivatives(layer, layer.bias ? z[i] + layer.bias[here.column] : z[i]);
    Real value = at.value;
    z[i] = at.slope, curvature[i] = at.curvature;
    if (activated) activated[i] = value;
    if (layer.idt) value *= layer.idt[here.column];
    if (layer.skip) value += x[here.row * layer.n_in + here.column % layer.n_in];
    y[i] = value;
}

// The adjoint of z from that of the output, p; null stands for 1.
extern "C" __global__ void layer_adjoint(const Layer layer, long long n, const Real* p, const Real* slope, Real* z_adjoint) {
    const long long i = my_element();
    if (i >= n * layer.n_out) return;
    Real adjoint = p ? p[i] * slope[i] : slope[i];
    if (layer.idt) adjoint *= layer.idt[place_of(i, layer.n_out).column];
    z_adjoint[i] = adjoint;
}

// z_dot is ẋ·w, and is overwritten by act′·ż; curvature is overwritten by p·act″·ż.  Sets y_dot; x_dot (n, n_in).
extern "C" __global__ void layer_tangent(const Layer layer, long long n, Real* z_dot, const Real* x_dot, const Real* p,
                                           const Real* slope, Real* curvature, Real* y_dot) {
    const long long i = my_element();
    if (i >= n * layer.n_out) return;
    const Place here = place_of(i, layer.n_out);
    const Real change = z_dot[i];
    Real value = slope[i] * change;
    curvature[i] *= p ? p[i] * change : change;
    z_dot[i] = value;
    if (layer.idt) value *= layer.idt[here.column];
    if (layer.skip) value += x_dot[here.row * layer.n_in + here.column % layer.n_in];
    y_dot[i] = value;
}

// The adjoint of z by value from that of the output, q; `bend` is p·act″·ż.  With idt, the terms of its gradient, too.
extern "C" __global__ void layer_value_adjoint(const Layer layer, long long n, const Real* q, const Real* slope, const Real* bend,
                                         Real* z_adjoint, const Real* activated, const Real* p, const Real* y_tangent,
                                         Real* idt_terms) {
    const long long i = my_element();
    if (i >= n * layer.n_out) return;
    Real adjoint = q[i] * slope[i] + bend[i];
    if (layer.idt) {
        adjoint *= layer.idt[place_of(i, layer.n_out).column];
        idt_terms[i] = q[i] * activated[i] + (p ? p[i] * y_tangent[i] : y_tangent[i]);
    }
    z_adjoint[i] = adjoint;
}

}  // namespace dphpc
