// The fitting net with packed weights, and its evaluation on tiles of atoms.
//
// Inputs are formed from the moments chunk by chunk just before the first matrix product, and their adjoints are used
// up in the same way: neither is ever in memory as a whole.  Features D = AᵀA[:, :axis] are symmetric where both
// indices are below `axis`: two equal features enter the first layer once, with the sum of their rows of weights.
// Features are in the order (k, m ≥ k).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "activations.h"
#include "moment_weights.h"
#include "product.h"

namespace dphpc {

using Activation = std::variant<Tanh, Linear, Sigmoid, Softplus, Relu, Relu6, Gelu, Silu, Silut>;

// Throws std::invalid_argument for an unknown name; `threshold` belongs to silut.
Activation activation_of(const std::string& name, double threshold);

// A layer, not packed: y = act(x·w + bias)·idt, plus `skip` copies of x side by side.  bias and idt may be null.
template <class Real>
struct LayerView {
    const Real *w, *bias, *idt;
    int n_in, n_out, skip;
    Activation activation;
};

// Inputs of a net for n atoms: moments (n, 4, M), from which features are formed, and other columns (n, n_columns).
template <class Real>
struct NetInputs {
    const Real *moments, *columns;
};

// A part of the inputs: the features (k, m ≥ k) with first ≤ k < last, or the other columns from first to last.
template <class Real>
struct Chunk {
    int first, last, width;
    int start;  // index of its first feature among all features
    bool is_features;
    PackedMatrix<Real> forward, backward;            // the first layer's weights and their transpose
    PackedMatrix<Real> skip_forward, skip_backward;  // the same for the first layer's skip connection, if it has one
};

template <class Real>
struct PackedLayer {
    int n_in, n_out, skip;
    Activation activation;
    std::vector<Real> bias, idt;           // bias is padded, and zero if the layer has none; idt may be empty
    PackedMatrix<Real> forward, backward;  // empty in the first layer of a PackedNet, whose chunks have the weights

    int step() const { return padded<Real>(n_out); }  // row length of arrays (n, n_out)
    int step_in() const { return padded<Real>(n_in); }
};

// Copies a layer's bias and idt.
template <class Real, class Given>
void take_vectors(const LayerView<Given>& view, PackedLayer<Real>& layer) {
    layer.bias.assign(layer.step(), Real(0));
    if (view.bias) std::copy_n(view.bias, view.n_out, layer.bias.begin());
    if (view.idt) layer.idt.assign(view.idt, view.idt + view.n_out);
}

// Packs a layer's weights and their transpose.
template <class Real, class Given>
void pack_weights(const LayerView<Given>& view, PackedLayer<Real>& layer) {
    const auto row = [&](int i) {
        return [w = view.w + static_cast<std::size_t>(i) * view.n_out](int j) { return w[j]; };
    };
    layer.forward.pack_rows(view.n_in, view.n_out, row);
    layer.backward.pack_columns(view.n_out, view.n_in, row);
}

// y (n, n_out) += the copies of x (n, n_in) that a skip connection adds.
template <class Real>
void add_copies(const PackedLayer<Real>& layer, std::int64_t n, const Real* x, Real* y) {
    for (int from = 0; from < layer.skip * layer.n_in; from += layer.n_in)
        for (std::int64_t i = 0; i < n; ++i)
            for (int k = 0; k < layer.n_in; ++k) y[i * layer.step() + from + k] += x[i * layer.step_in() + k];
}

// x (n, n_in) = the part of the input's adjoint that comes through the skip connection, from the output's y (n, n_out).
template <class Real>
void set_copies_adjoint(const PackedLayer<Real>& layer, std::int64_t n, const Real* y, Real* x) {
    std::fill_n(x, n * layer.step_in(), Real(0));
    for (int from = 0; from < layer.skip * layer.n_in; from += layer.n_in)
        for (std::int64_t i = 0; i < n; ++i)
            for (int k = 0; k < layer.n_in; ++k) x[i * layer.step_in() + k] += y[i * layer.step() + from + k];
}

template <class Real>
class PackedNet {
  public:
    // The net's inputs are `channels`·`axis` features, then n_in − channels·axis other columns.
    PackedNet(const std::vector<LayerView<Real>>& views, int channels, int axis);

    // Sets the inputs (n, padded width) of a chunk, for n atoms from `from` on.
    void fill(const Chunk<Real>& chunk, const NetInputs<Real>& x, std::int64_t from, int n, Real* inputs) const;
    // Adds to moments_adjoint (n, 4, M) the contribution of a chunk of features with adjoints y (n, padded width).
    void gather(const Chunk<Real>& chunk, const Real* moments, const Real* y, std::int64_t from, int n,
                Real* moments_adjoint) const;

    const int channels, axis, n_columns;
    std::vector<PackedLayer<Real>> layers;
    std::vector<Chunk<Real>> chunks;

  private:
    struct Rows {
        int one, other;  // rows of the weights that an input is multiplied by; other is −1 if there is only one
    };
    Rows rows_of(const Chunk<Real>& chunk, int i) const;
    void pack_chunk(const LayerView<Real>& layer, Chunk<Real>& chunk) const;
    int n_features(int first, int last) const;  // number of features (k, m ≥ k) with first ≤ k < last

    std::vector<std::int32_t> first_index_, second_index_;  // (k, m) of each feature
};

// Inputs, outputs and memory of a thread for a tile of n atoms; the memory is kept from tile to tile.
template <class Real>
struct FittingTile {
    int n = 0;
    NetInputs<Real> inputs{};
    Real* moments_adjoint = nullptr;              // (n, 4, M), is set
    Real* columns_adjoint = nullptr;              // (n, n_columns), is set unless null
    std::vector<std::vector<Real>> value, slope;  // of each layer (n, padded n_out)
    std::vector<Real> chunk, adjoint, next;       // a chunk of inputs; adjoints of a layer's output and input
};

// Evaluates the net for a tile: value.back() then holds the outputs, and the adjoints the derivatives of their sum.
template <class Real>
void evaluate(const PackedNet<Real>& net, FittingTile<Real>& tile);

}  // namespace dphpc
