// The fitting net on tiles of atoms: its inputs are formed from the moments chunk by chunk on the way into the first
// matrix product, and so are their adjoints on the way back; neither is ever in memory as a whole.
//
// Features D = AᵀA[:, :axis] are symmetric where both indices are below `axis`: a pair of them that is equal enters the
// first layer once, with the sum of its two rows of weights.  Inputs stand in the order (k, m ≥ k).
#pragma once

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

// A layer as it is given: y = act(x·w + bias)·idt + skip copies of x side by side.  bias and idt may be null.
template <class Real>
struct LayerView {
    const Real *w, *bias, *idt;
    int n_in, n_out, skip;
    Activation activation;
};

// What one thread needs for a tile of n atoms; memory is kept from tile to tile.
template <class Real>
struct FittingTile {
    int n = 0;
    const Real* moments = nullptr;     // (n, 4, M)
    Real* moments_adjoint = nullptr;   // (n, 4, M), is set
    const Real* columns = nullptr;     // (n, n_columns) inputs beside the features
    Real* columns_adjoint = nullptr;   // (n, n_columns), is set where given
    std::vector<std::vector<Real>> value, slope;  // of each layer (n, padded n_out)
    std::vector<Real> inputs, adjoint, next;      // a chunk of inputs; adjoints of a layer's output and input
};

template <class Real>
class FittingNet {
  public:
    // `axis` rows of `channels` features stand before n_in − channels·axis other columns among the net's inputs.
    FittingNet(const std::vector<LayerView<Real>>& layers, int channels, int axis);

    // Afterwards energy(tile, i) is the net's first output, and the adjoints hold the derivative of the outputs' sum.
    void evaluate(FittingTile<Real>& tile) const;
    Real energy(const FittingTile<Real>& tile, int i) const {
        return tile.value.back()[static_cast<std::size_t>(i) * padded<Real>(layers_.back().n_out)];
    }

    const int channels, axis, n_columns;

  private:
    // A part of the inputs: features (k, m ≥ k) of first ≤ k < last, or those of the other columns.
    struct Chunk {
        int first, last, width;
        bool is_features;
        PackedMatrix<Real> forward, backward;            // the first layer's weights and their transpose
        PackedMatrix<Real> skip_forward, skip_backward;  // where the first layer has a skip connection
    };
    struct Layer {
        int n_in, n_out, skip;
        Activation activation;
        std::vector<Real> bias, idt;            // bias is padded and zero where there is none; idt may be empty
        PackedMatrix<Real> forward, backward;  // not of the first layer
    };

    void add_chunk(const LayerView<Real>& layer, int first, int last, bool is_features);
    void fill(const FittingTile<Real>& tile, const Chunk& chunk, Real* inputs) const;
    void gather(const FittingTile<Real>& tile, const Chunk& chunk, const Real* adjoint) const;
    void forward(FittingTile<Real>& tile) const;
    void backward(FittingTile<Real>& tile) const;

    std::vector<Layer> layers_;
    std::vector<Chunk> chunks_;
};

}  // namespace dphpc
