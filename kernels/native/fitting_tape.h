// The fitting net in training: energies, their derivatives with respect to the moments, and the gradient of S = Σ ē·E +
// Ė, where Ė is the derivative of ΣE along a direction of the moments.  dphpc/ops/fitting/gradient.py has the formulas;
// here atoms go through all layers tile by tile, and the weights' gradients are computed block by block.
#pragma once

#include "fitting.h"

namespace dphpc {

// Arrays for a layer's gradients; null for those that are not wanted.
template <class Real>
struct LayerGradient {
    Real *w, *bias, *idt;
};

template <class Real>
class FittingTape {
  public:
    FittingTape(const std::vector<LayerView<Real>>& views, int channels, int axis)
        : net_(views, channels, axis), pieces_(net_.pieces(piece_width)) {}

    void repack(const std::vector<LayerView<Real>>& views, int threads) { net_.repack(views, threads); }

    // Sets energies (n) and moments_adjoint (n, 4, M), the derivative of their sum.  The inputs must not change until
    // `gradient` has been called.
    void energy_and_adjoint(const NetInputs<Real>& x, std::int64_t n, int threads, Real* energies,
                            Real* moments_adjoint);

    // For seeds ē (n) and the moments' change `tangent` (n, 4, M): sets the gradients of the weights, or with `add`
    // adds to them, and sets moments_bar (n, 4, M), the gradient of the moments.
    void gradient(const Real* seeds, const Real* tangent, int threads, const std::vector<LayerGradient<Real>>& gradients,
                  bool add, Real* moments_bar);

  private:
    static constexpr int piece_width = 128;  // inputs whose rows of the weight gradient are a thread's task

    // Values of one layer for all atoms: (n, padded n_out), or (tiles, padded n_out) for sums.
    struct Kept {
        std::vector<Real> value, act;              // output; act(z), if the layer has idt
        std::vector<Real> slope, curvature;        // act′(z), act″(z)
        std::vector<Real> adjoint, z_adjoint;      // ∂E/∂output, ∂E/∂z
        std::vector<Real> tangent;                 // of the output
        std::vector<Real> bias_sums, idt_sums;     // gradients of each tile
        std::vector<PackedMatrix<Real>> right[2];  // of each tile: q = ∂S/∂z and p = ∂E/∂z, packed
    };

    template <class Fill>
    void first_product(const Part& part, Fill&& fill, Real* z);
    void forward(const Part& part);
    void add_skipped(const Part& part, Real* output);
    void adjoint(const Tile& tile);
    void inputs_adjoint(const Part& part, Real* moments_adjoint);
    void forward_tangent(const Part& part);
    void adjoint_tangent(const Tile& tile, const Real* seeds);
    void layer_adjoint(const Tile& tile, int l, Real* q);
    void inputs_adjoint_tangent(const Part& part, const Real* tangent, Real* moments_bar);
    void first_weights(const Chunk<Real>& piece, const Real* tangent, bool add, Real* w);
    void weight_rows(int l, int first, int last, bool add, Real* w);
    void add_weight_rows(int l, int tile, int rows, const Real* x, const Real* x_dot, int width, Real* sum) const;
    std::int64_t n_row() const { return n_rows * net_.channels; }  // number of moments of an atom

    PackedNet<Real> net_;
    std::vector<Chunk<Real>> pieces_;
    std::vector<Kept> kept_;
    std::vector<std::vector<Real>> inputs_adjoint_;  // ∂E/∂input of each chunk (n, padded width)
    // Of the first layer, (n, padded n_out): copies by its skip connection, ∂S/∂z and ∂S/∂output.
    std::vector<Real> skipped_, q_z_, q_output_;
    SharedSum<Real> z_sum_, skipped_sum_, moments_sum_;
    NetInputs<Real> x_{};
    Tiling tiling_{0, 1, 1};
};

}  // namespace dphpc
