// A layer on panels: its weights as left factors, its skip connection and its factors of rows.
#pragma once

#include "fitting.h"
#include "panels.h"

namespace dphpc {

// The left factor that makes a layer's z of its input, and the one that makes the input's adjoint of z's.
template <class Real>
LeftMatrix<Real> forward_of(const LayerView<Real>& layer) {
    return LeftMatrix<Real>::transposed(layer.w, layer.n_in, layer.n_out);
}

template <class Real>
LeftMatrix<Real> backward_of(const LayerView<Real>& layer) {
    return LeftMatrix<Real>::of(layer.w, layer.n_in, layer.n_out);
}

// y (n_out) += the copies of x (n_in) that a skip connection adds.
template <class Real>
void add_panel_copies(const LayerView<Real>& layer, const Tile& tile, const Real* x, Real* y) {
    for_panels<Real>(tile, [&](std::int64_t first, auto n) {
        for (int copy = 0; copy < layer.skip; ++copy)
            for (int k = 0; k < layer.n_in * n; ++k)
                y[first * layer.n_out + copy * layer.n_in * n + k] += x[first * layer.n_in + k];
    });
}

// x (n_in) = the part of the input's adjoint that comes through the skip connection, from the output's y (n_out).
template <class Real>
void set_panel_copies_adjoint(const LayerView<Real>& layer, const Tile& tile, const Real* y, Real* x) {
    std::fill_n(x, static_cast<std::int64_t>(tile.n) * layer.n_in, Real(0));
    for_panels<Real>(tile, [&](std::int64_t first, auto n) {
        for (int copy = 0; copy < layer.skip; ++copy)
            for (int k = 0; k < layer.n_in * n; ++k)
                x[first * layer.n_in + k] += y[first * layer.n_out + copy * layer.n_in * n + k];
    });
}

// Multiplies each row of a tile's panels by its factor.
template <class Real>
void scale_rows(const Tile& tile, int rows, const Real* factor, Real* y) {
    for_panel_rows<Real>(tile, rows, [&](int r, std::int64_t at, auto n) {
        for (int j = 0; j < n; ++j) y[at + j] *= factor[r];
    });
}

}  // namespace dphpc
