#include "knots.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace dphpc {
namespace {

constexpr int tile_size = 24;  // most knots of a tile, of three rows each
constexpr int n_jet = 3;  // value and two derivatives

// The polynomial's coefficients in t = (s − left)/h, as combinations of (G, hG′, h²G″) at the left and the right knot.
constexpr double hermite[n_powers][2 * n_jet] = {
    {1, 0, 0, 0, 0, 0},       {0, 1, 0, 0, 0, 0},     {0, 0, 0.5, 0, 0, 0},
    {-10, -6, -1.5, 10, -4, 0.5}, {15, 8, 1.5, -15, 7, -1}, {-6, -3, -0.5, 6, -3, 0.5}};

}  // namespace

template <class Real>
void KnotTape<Real>::take(const Networks& networks, const KnotGrid& grid) {
    networks_.resize(networks.size());
    for (std::size_t which = 0; which < networks.size(); ++which) {
        networks_[which].resize(networks[which].size());
        for (std::size_t l = 0; l < networks[which].size(); ++l) {
            const LayerView<Real>& view = networks[which][l];
            Layer& layer = networks_[which][l];
            layer.n_in = view.n_in, layer.n_out = view.n_out, layer.skip = view.skip, layer.activation = view.activation;
            take_vectors(view, layer);
            pack_weights(view, layer);
        }
    }
    width_ = networks_.front().back().step();
    const int n = grid.n_intervals + 1;
    tiles_each_ = (n + tile_size - 1) / tile_size;
    tiles_.resize(networks.size() * tiles_each_);
    for (int t = 0; t < static_cast<int>(tiles_.size()); ++t) {
        const int of_network = t % tiles_each_, first = n * of_network / tiles_each_;
        tiles_[t].network = t / tiles_each_, tiles_[t].first = first;
        tiles_[t].n = n * (of_network + 1) / tiles_each_ - first;
        tiles_[t].kept.resize(networks_[tiles_[t].network].size());
    }
}

template <class Real>
void KnotTape<Real>::table(const Networks& networks, const KnotGrid& grid, [[maybe_unused]] int threads,
                           Real* coefficients) {
    take(networks, grid);
    const auto n_rows = static_cast<std::int64_t>(networks_.size()) * grid.n_intervals;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (std::size_t t = 0; t < tiles_.size(); ++t) forward(tiles_[t], grid.knots);
#pragma omp for schedule(static)
        for (std::int64_t row = 0; row < n_rows; ++row) set_coefficients(grid, row, coefficients);
    }
}

template <class Real>
void KnotTape<Real>::gradient(const KnotGrid& grid, const double* coefficients, [[maybe_unused]] int threads,
                              const std::vector<std::vector<LayerGradient<Real>>>& gradients) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (std::size_t t = 0; t < tiles_.size(); ++t) {
        set_jets_adjoint(grid, coefficients, tiles_[t]);
        adjoint(tiles_[t]);
    }
    for (std::size_t which = 0; which < networks_.size(); ++which) set_gradient(static_cast<int>(which), gradients[which]);
}

template <class Real>
void KnotTape<Real>::forward(Tile& tile, const double* knots) const {
    const std::vector<Layer>& layers = networks_[tile.network];
    const int n = tile.n;
    for (std::size_t l = 0; l < layers.size(); ++l) {
        const Layer& layer = layers[l];
        Kept& kept = tile.kept[l];
        const int width_in = layer.step_in(), width = layer.step(), part = n * width;
        double* x = sized(kept.input, n_jet * n * width_in);
        if (l == 0)
            for (int i = 0; i < n; ++i)
                x[i * width_in] = knots[tile.first + i], x[(n + i) * width_in] = 1.0, x[(2 * n + i) * width_in] = 0.0;
        double* z = sized(kept.z, n_jet * part);
        for (int i = 0; i < n; ++i) std::copy(layer.bias.begin(), layer.bias.end(), z + i * width);
        std::fill(z + part, z + n_jet * part, 0.0);
        layer.forward.add_product(n_jet * n, x, width_in, 1, z, width);
        double *first = sized(kept.first, part), *second = sized(kept.second, part), *third = sized(kept.third, part);
        std::vector<double>& output = l + 1 < layers.size() ? tile.kept[l + 1].input : tile.jets;
        double* y = sized(output, n_jet * part);
        std::visit(
            [&](const auto& function) {
#pragma omp simd
                for (int k = 0; k < part; ++k) {
                    const double at = z[k], z1 = z[part + k], z2 = z[2 * part + k];
                    double a;
                    const double a1 = function(at, a), a2 = function.curvature(at, a, a1);
                    first[k] = a1, second[k] = a2, third[k] = function.third(at, a, a1, a2);
                    y[k] = a, y[part + k] = a1 * z1, y[2 * part + k] = a2 * z1 * z1 + a1 * z2;
                }
            },
            layer.activation);
        if (!layer.idt.empty()) {
            std::copy_n(y, n_jet * part, sized(kept.activated, n_jet * part));
            for (int i = 0; i < n_jet * n; ++i)
                for (int j = 0; j < layer.n_out; ++j) y[i * width + j] *= layer.idt[j];
        }
        add_copies(layer, n_jet * n, x, y);
    }
}

// Backpropagates tile.adjoint, that of the jets, which is overwritten.
template <class Real>
void KnotTape<Real>::adjoint(Tile& tile) const {
    const std::vector<Layer>& layers = networks_[tile.network];
    const int n = tile.n;
    for (std::size_t l = layers.size(); l-- > 0;) {
        const Layer& layer = layers[l];
        Kept& kept = tile.kept[l];
        const int width_in = layer.step_in(), width = layer.step(), part = n * width;
        double* y = tile.adjoint.data();
        double* before = sized(tile.before, n_jet * n * width_in);
        set_copies_adjoint(layer, n_jet * n, y, before);
        if (!layer.idt.empty()) {
            kept.idt_sums.assign(layer.n_out, 0.0);
            for (int i = 0; i < n_jet * n; ++i)
                for (int j = 0; j < layer.n_out; ++j) {
                    kept.idt_sums[j] += y[i * width + j] * kept.activated[i * width + j];
                    y[i * width + j] *= layer.idt[j];
                }
        }
        const double *z1 = kept.z.data() + part, *z2 = z1 + part;
        const double *a1 = kept.first.data(), *a2 = kept.second.data(), *a3 = kept.third.data();
#pragma omp simd
        for (int k = 0; k < part; ++k) {
            const double y0 = y[k], y1 = y[part + k], y2 = y[2 * part + k];
            y[k] = y0 * a1[k] + y1 * a2[k] * z1[k] + y2 * (a3[k] * z1[k] * z1[k] + a2[k] * z2[k]);
            y[part + k] = y1 * a1[k] + 2.0 * y2 * a2[k] * z1[k];
            y[2 * part + k] = y2 * a1[k];
        }
        kept.bias_sums.assign(width, 0.0);
        for (int i = 0; i < n; ++i)
            for (int j = 0; j < width; ++j) kept.bias_sums[j] += y[i * width + j];
        tile.right.pack_rows(n_jet * n, layer.n_out, [&](int k) { return [row = y + k * width](int j) { return row[j]; }; });
        kept.w_sums.assign(layer.n_in * width, 0.0);
        tile.right.add_product(layer.n_in, kept.input.data(), 1, width_in, kept.w_sums.data(), width);
        if (l > 0) layer.backward.add_product(n_jet * n, y, width, 1, before, width_in);
        std::swap(tile.adjoint, tile.before);
    }
}

template <class Real>
void KnotTape<Real>::set_gradient(int network, const std::vector<LayerGradient<Real>>& gradients) const {
    const Tile *first = tiles_.data() + network * tiles_each_, *last = first + tiles_each_;
    for (std::size_t l = 0; l < gradients.size(); ++l) {
        const Layer& layer = networks_[network][l];
        const auto set = [&](Real* out, int n_rows, const std::vector<double> Kept::*sums) {
            for (int i = 0; out && i < n_rows; ++i)
                for (int j = 0; j < layer.n_out; ++j) {
                    double sum = 0.0;
                    for (const Tile* tile = first; tile != last; ++tile)
                        sum += (tile->kept[l].*sums)[i * layer.step() + j];
                    out[i * layer.n_out + j] = static_cast<Real>(sum);
                }
        };
        set(gradients[l].w, layer.n_in, &Kept::w_sums);
        set(gradients[l].bias, 1, &Kept::bias_sums);
        set(gradients[l].idt, 1, &Kept::idt_sums);
    }
}

// Sets the coefficients of an interval; `row` counts the intervals of all networks.
template <class Real>
void KnotTape<Real>::set_coefficients(const KnotGrid& grid, std::int64_t row, Real* coefficients) const {
    const int network = static_cast<int>(row / grid.n_intervals), interval = static_cast<int>(row % grid.n_intervals);
    const int n_out = networks_[network].back().n_out;
    const double h = grid.widths[interval], scale[n_jet] = {1.0, h, h * h};
    const Tile* tile = tiles_.data() + network * tiles_each_;
    const double* side[2 * n_jet];
    for (int right = 0; right < 2; ++right) {
        const int knot = interval + right;
        while (knot >= tile->first + tile->n) ++tile;
        for (int d = 0; d < n_jet; ++d) side[n_jet * right + d] = tile->jets.data() + (d * tile->n + knot - tile->first) * width_;
    }
    for (int power = 0; power < n_powers; ++power) {
        Real* out = coefficients + (row * n_powers + power) * n_out;
        double w[2 * n_jet];
        for (int d = 0; d < 2 * n_jet; ++d) w[d] = hermite[power][d] * scale[d % n_jet];
        for (int m = 0; m < n_out; ++m)
            out[m] = static_cast<Real>((w[0] * side[0][m] + w[1] * side[1][m] + w[2] * side[2][m]) +
                                       (w[3] * side[3][m] + w[4] * side[4][m] + w[5] * side[5][m]));
    }
}

// The transpose of `set_coefficients`, for the knots of a tile.
template <class Real>
void KnotTape<Real>::set_jets_adjoint(const KnotGrid& grid, const double* coefficients, Tile& tile) const {
    const int n_out = networks_[tile.network].back().n_out;
    double* jets = sized(tile.adjoint, n_jet * tile.n * width_);
    std::fill_n(jets, n_jet * tile.n * width_, 0.0);
    for (int i = 0; i < tile.n; ++i)
        for (int right = 0; right < 2; ++right) {  // the knot is the left or the right end of an interval
            const int interval = tile.first + i - right;
            if (interval < 0 || interval >= grid.n_intervals) continue;
            const double* c = coefficients + (static_cast<std::int64_t>(tile.network) * grid.n_intervals + interval) * n_powers * n_out;
            const double h = grid.widths[interval], scale[n_jet] = {1.0, h, h * h};
            for (int d = 0; d < n_jet; ++d) {
                double* out = jets + (d * tile.n + i) * width_;
                for (int power = 0; power < n_powers; ++power) {
                    const double w = hermite[power][n_jet * right + d] * scale[d];
                    for (int m = 0; w != 0.0 && m < n_out; ++m) out[m] += w * c[power * n_out + m];
                }
            }
        }
}

template class KnotTape<double>;
template class KnotTape<float>;

}  // namespace dphpc
