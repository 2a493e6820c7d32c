// The fitting net in training: energies, their derivatives with respect to the moments, and the gradient of S = Σ ē·E +
// Ė, where Ė is the derivative of ΣE along a direction of the moments.  dphpc/ops/fitting/reference.py has the formulas;
// here atoms go through all layers tile by tile, and the weights' gradients are computed block by block.
#pragma once

#include "tape_inputs.h"

namespace dphpc {

// Arrays for a layer's gradients; null for those that are not wanted.
template <class Real>
struct LayerGradient {
    Real *w, *bias, *idt;
};

template <class Real>
class FittingTape {
  public:
    // The layers' arrays are read where they stand, at every call.
    FittingTape(const std::vector<LayerView<Real>>& layers, int channels, int axis);

    // To be called when the weights have changed.
    void weights_changed() { inputs_.fold(); }

    // For inputs x of n atoms, sets energies (n) and moments_adjoint (n, 4, M), the derivative of their sum.
    void energy_and_adjoint(const NetInputs<Real>& x, std::int64_t n, int threads, Real* energies,
                            Real* moments_adjoint);

    // For the same atoms, seeds ē (n) and the moments' change `tangent` (n, 4, M): sets the gradients of the weights, or
    // with `add` adds to them, and sets moments_bar (n, 4, M), the gradient of the moments.
    void gradient(const Real* seeds, const Real* tangent, int threads, const std::vector<LayerGradient<Real>>& gradients,
                  bool add, Real* moments_bar);

  private:
    static constexpr int piece_width = 128;  // inputs whose rows of the weight gradient are a thread's task

    // Values of one layer for all atoms, panels (n_out), or (tiles, n_out) for sums.
    struct Kept {
        std::vector<Real> value, act;              // output; act(z), if the layer has idt
        std::vector<Real> slope, curvature;        // act′(z), act″(z)
        std::vector<Real> adjoint, z_adjoint;      // ∂E/∂output, ∂E/∂z
        std::vector<Real> tangent;                 // of the output
        std::vector<Real> bias_sums, idt_sums;     // gradients of each tile
        std::vector<PackedMatrix<Real>> right[2];  // of each tile (atoms, n_out): q = ∂S/∂z and p = ∂E/∂z
    };

    // A thread's memory, kept from tile to tile and from block to block.
    struct Scratch {
        std::vector<Real> inputs, q, next, rows, folded, sum;

        static Scratch& own() {
            thread_local Scratch scratch;
            return scratch;
        }
    };

    template <class Fill>
    void first_product(const Part& part, Fill&& fill, Real* z);
    void forward(const Part& part);
    void add_skipped(const Part& part, Real* output);
    void adjoint(const Tile& tile);
    void inputs_adjoint(const Part& part);
    void piece_adjoint(const InputPiece& piece, const Tile& group, const Real* z_bar, const Real* output_bar, Real* y);
    void forward_tangent(const Part& part);
    void adjoint_tangent(const Tile& tile, const Real* seeds);
    void layer_adjoint(const Tile& tile, int l, Real* q);
    void inputs_adjoint_tangent(const Part& part);
    void set_weights(int threads, const std::vector<LayerGradient<Real>>& gradients, bool add);
    void first_weights(const InputPiece& piece, bool add, Real* w);
    void weight_rows(int l, int first, int last, bool add, Real* w);
    template <class Left>
    void set_weight_rows(int l, int rows, bool add, Real* w, Left&& left);

    int atoms_of(const Tile& tile) const { return static_cast<int>(std::clamp<std::int64_t>(n_ - tile.first, 0, tile.n)); }
    int n_row() const { return n_rows * inputs_.channels; }  // number of moments of an atom
    const std::vector<InputPiece>& pieces(const Share& share) const {
        return share.count == 1 ? pieces_ : half_pieces_[share.index];
    }

    std::vector<LayerView<Real>> layers_;
    TapeInputs<Real> inputs_;
    std::vector<InputPiece> pieces_, half_pieces_[2], weight_pieces_[2];  // of all inputs, and of each of two shares
    std::vector<Kept> kept_;
    std::vector<Real> moments_, columns_, moments_tangent_, moments_bar_;  // panels; the last: of either pass
    std::vector<Real> inputs_adjoint_;  // ∂E/∂input: panels of each piece
    // Of the first layer, panels (n_out): copies by its skip connection, ∂S/∂z and ∂S/∂output.
    std::vector<Real> skipped_, q_z_, q_output_;
    SharedSum<Real> z_sum_, skipped_sum_, moments_sum_;
    std::int64_t n_ = 0;
    Tiling tiling_{0, 1, 1, 1, 1};
};

}  // namespace dphpc
