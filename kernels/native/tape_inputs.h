// The inputs of a fitting net in training: features of the moments, formed piece by piece, and their weights.
//
// Features D = AᵀA[:, :axis] are symmetric where both indices are below `axis`: two equal features enter the first layer
// once, with the sum of their rows of weights.  Features are in the order (m, k ≤ m), so that those with m ≥ axis, and
// other columns behind them, have their weights where the layer has them.
#pragma once

#include <cstdint>
#include <vector>

#include "fitting.h"
#include "panels.h"

namespace dphpc {

// The features (m, k ≤ m) with first ≤ m < last, or the other columns from first to last.
struct InputPiece {
    int first, last, width;
    int start;  // index of its first input among all inputs
    bool is_features;
};

// Moments (4 M rows), their tangents and other columns are in panels, as are the inputs unless `row_step` says otherwise.
template <class Real>
class TapeInputs {
  public:
    TapeInputs(const LayerView<Real>& first_layer, int channels, int axis);

    // To be called when the first layer's weights have changed.
    void fold();

    int n_inputs() const { return n_features_ + n_columns; }
    // The inputs of a share, in pieces of about `width`.
    std::vector<InputPiece> pieces(const Share& share, int width) const;
    // The weights of a piece, (width, n_out).
    const Real* weights(const InputPiece& piece) const;
    // Whether a piece's rows of the first layer's weights are its weights, one for one.
    bool is_plain(const InputPiece& piece) const { return !piece.is_features || piece.first >= axis; }
    // The row of the first layer's weights that is the first of a plain piece.
    int first_row(const InputPiece& piece) const;

    // Sets the inputs of a tile: in panels, or with a `row_step` input i of all its atoms from inputs + i·row_step on.
    void fill(const InputPiece& piece, const Tile& tile, const Real* moments, const Real* columns, Real* inputs,
              int row_step = 0) const;
    // The same for the tangents of a piece of features, when the moments change by `tangent`; those of columns are zero.
    void fill_tangent(const InputPiece& piece, const Tile& tile, const Real* moments, const Real* tangent, Real* inputs,
                      int row_step = 0) const;
    // Adds to moments_adjoint the contribution of a piece of features with adjoints y.
    void gather(const InputPiece& piece, const Tile& tile, const Real* moments, const Real* y,
                Real* moments_adjoint) const;
    // The first layer's skip connection: adds a piece's inputs to the copies (n_out), and their adjoints to those of the
    // piece's inputs.
    void add_copies(const InputPiece& piece, const Tile& tile, const Real* inputs, Real* copies) const;
    void add_copies_adjoint(const InputPiece& piece, const Tile& tile, const Real* copies, Real* inputs) const;
    // Calls work(i, row) for each input i of a piece and each row of the first layer's weights that it has.
    template <class Work>
    void for_rows(const InputPiece& piece, Work&& work) const {
        if (is_plain(piece)) {
            for (int i = 0; i < piece.width; ++i) work(i, first_row(piece) + i);
            return;
        }
        for (int m = piece.first, i = 0; m < piece.last; ++m)
            for (int k = 0; k <= m; ++k, ++i) {
                work(i, m * axis + k);
                if (k < m) work(i, k * axis + m);
            }
    }

    const int channels, axis, n_columns;

  private:
    template <class OfPanel>
    void set_features(const InputPiece& piece, const Tile& tile, Real* inputs, int row_step, OfPanel&& of_panel) const;
    template <class Work>
    void for_copies(const InputPiece& piece, const Tile& tile, Work&& work) const;
    int start(int m) const;  // number of features (m′, k) with m′ < m
    int features_of(int m) const { return m < axis ? m + 1 : axis; }

    LayerView<Real> layer_;
    int n_features_;
    std::vector<Real> folded_;  // weights of the features with m < axis
};

}  // namespace dphpc
