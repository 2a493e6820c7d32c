// The radial table as a function of the embedding networks' weights, and its backpropagation; dphpc/ops/se_a/knots.py
// has the formulas.  Weights and table have precision Real, everything in between is float64.
#pragma once

#include <cstdint>
#include <vector>

#include "fitting.h"
#include "fitting_tape.h"

namespace dphpc {

// Knots s_0 … s_n and the widths of the n intervals between them.
struct KnotGrid {
    const double *knots, *widths;
    int n_intervals;
};

template <class Real>
class KnotTape {
  public:
    using Networks = std::vector<std::vector<LayerView<Real>>>;

    // Sets coefficients (networks, n, 6, M).
    void table(const Networks& networks, const KnotGrid& grid, int threads, Real* coefficients);

    // Sets the networks' gradients from that of the coefficients, at the weights and the grid of the last `table`.
    void gradient(const KnotGrid& grid, const double* coefficients, int threads,
                  const std::vector<std::vector<LayerGradient<Real>>>& gradients);

  private:
    using Layer = PackedLayer<double>;  // here the first layer's weights are packed, too
    // Values of a layer at the knots of a tile, and their first two derivatives by s: (3, knots, padded width).
    struct Kept {
        std::vector<double> input, z, activated, first, second, third;  // the last three are act′, act″, act‴ at z
        std::vector<double> w_sums, bias_sums, idt_sums;                // gradients of this tile
    };
    struct Tile {
        int network, first, n;
        std::vector<Kept> kept;
        std::vector<double> jets, adjoint, before;
        PackedMatrix<double> right;
    };

    void take(const Networks& networks, const KnotGrid& grid);
    void forward(Tile& tile, const double* knots) const;
    void adjoint(Tile& tile) const;
    void set_gradient(int network, const std::vector<LayerGradient<Real>>& gradients) const;
    void set_coefficients(const KnotGrid& grid, std::int64_t row, Real* coefficients) const;
    void set_jets_adjoint(const KnotGrid& grid, const double* coefficients, Tile& tile) const;

    std::vector<std::vector<Layer>> networks_;
    std::vector<Tile> tiles_;  // the same number for each network, `tiles_each_`
    int tiles_each_ = 0, width_ = 0;
};

}  // namespace dphpc
