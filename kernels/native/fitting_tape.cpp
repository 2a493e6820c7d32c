#include "fitting_tape.h"

#include <algorithm>

#include "panel_layers.h"
#include "parallel.h"

namespace dphpc {
namespace {

constexpr int tile_size = 96;    // most atoms of a tile
template <class Real>
constexpr int piece_size = 1600 / static_cast<int>(sizeof(Real));  // approximate number of inputs formed at a time

}  // namespace

template <class Real>
FittingTape<Real>::FittingTape(const std::vector<LayerView<Real>>& layers, int channels, int axis)
    : layers_(layers),
      inputs_(layers.front(), channels, axis),
      pieces_(inputs_.pieces({}, piece_size<Real>)),
      half_pieces_{inputs_.pieces({0, 2}, piece_size<Real>), inputs_.pieces({1, 2}, piece_size<Real>)},
      weight_pieces_{inputs_.pieces({0, 2}, piece_width), inputs_.pieces({1, 2}, piece_width)} {}

template <class Real>
void FittingTape<Real>::energy_and_adjoint(const NetInputs<Real>& x, std::int64_t n, int threads, Real* energies,
                                           Real* moments_adjoint) {
    n_ = n, tiling_ = panel_tiling<Real>(n, threads, tile_size);
    const int n_tiles = tiling_.n_tiles();
    const std::size_t n_padded = tiling_.padded();
    for (auto* sum : {&z_sum_, &skipped_sum_, &moments_sum_}) sum->prepare(n_tiles);
    kept_.resize(layers_.size());
    for (std::size_t l = 0; l < kept_.size(); ++l) {
        const std::size_t n_out = layers_[l].n_out, size = n_padded * n_out;
        Kept& k = kept_[l];
        for (auto* a : {&k.value, &k.slope, &k.curvature, &k.adjoint, &k.z_adjoint, &k.tangent}) sized(*a, size);
        if (layers_[l].idt) sized(k.act, size), sized(k.idt_sums, n_tiles * n_out);
        sized(k.bias_sums, n_tiles * n_out);
        for (auto& right : k.right) right.resize(n_tiles);
    }
    const LayerView<Real>& first = layers_.front();
    sized(q_z_, n_padded * first.n_out);
    if (first.skip) sized(skipped_, n_padded * first.n_out), sized(q_output_, n_padded * first.n_out);
    for (auto* a : {&moments_, &moments_tangent_, &moments_bar_}) sized(*a, n_padded * n_row());
    sized(columns_, n_padded * inputs_.n_columns), sized(inputs_adjoint_, n_padded * inputs_.n_inputs());
    tiling_.run(
        [&](const Part& part) {
            const Tile& tile = part.tile;
            set_panels(tile, n, n_row(), x.moments, at(moments_, tile, n_row()));
            set_panels(tile, n, inputs_.n_columns, x.columns, at(columns_, tile, inputs_.n_columns));
        },
        [&](const Part& part) {
            const Tile& group = part.group;
            const auto fill = [&](const InputPiece& piece, Real* inputs) {
                inputs_.fill(piece, group, at(moments_, group, n_row()), at(columns_, group, inputs_.n_columns), inputs);
                return true;
            };
            first_product(part, fill, kept_[0].value.data());
        },
        [&](const Part& part) { forward(part), adjoint(part.tile); },
        [&](const Part& part) { inputs_adjoint(part); },
        [&](const Part& part) {
            moments_sum_.finish(part, moments_bar_.data(), n_row());
            get_panels(part.tile, n, n_row(), at(moments_bar_, part.tile, n_row()), moments_adjoint);
            get_panels(part.tile, n, 1, at(kept_.back().value, part.tile, 1), energies);
        });
}

// Computes the part's share of x·w of the first layer, and of the copies of its skip connection.  fill(piece, inputs)
// sets a piece's inputs, or returns false if they are all zero.
template <class Real>
template <class Fill>
void FittingTape<Real>::first_product(const Part& part, Fill&& fill, Real* z) {
    const LayerView<Real>& layer = layers_.front();
    const Tile& group = part.group;
    Real* own = z_sum_.own(part, z, layer.n_out);
    Real* skipped = layer.skip ? skipped_sum_.own(part, skipped_.data(), layer.n_out) : nullptr;
    for (const InputPiece& piece : pieces(part.share)) {
        Real* inputs = sized(Scratch::own().inputs, static_cast<std::size_t>(group.n) * piece.width);
        if (!fill(piece, inputs)) continue;
        add_panel_product(group, LeftMatrix<Real>::transposed(inputs_.weights(piece), piece.width, layer.n_out), inputs,
                          own);
        if (skipped) inputs_.add_copies(piece, group, inputs, skipped);
    }
}

template <class Real>
void FittingTape<Real>::forward(const Part& part) {
    const Tile& tile = part.tile;
    for (std::size_t l = 0; l < kept_.size(); ++l) {
        const LayerView<Real>& layer = layers_[l];
        const std::int64_t from = tile.first * layer.n_out, size = static_cast<std::int64_t>(tile.n) * layer.n_out;
        Real* value = kept_[l].value.data() + from;
        const Real* before = l > 0 ? kept_[l - 1].value.data() + tile.first * layer.n_in : nullptr;
        if (l == 0) {
            z_sum_.finish(part, kept_[0].value.data(), layer.n_out);
        } else {
            std::fill_n(value, size, Real(0));
            add_panel_product(tile, forward_of(layer), before, value);
        }
        if (layer.bias)
            for_panel_rows<Real>(tile, layer.n_out, [&](int r, std::int64_t at, auto n) {
                for (int j = 0; j < n; ++j) value[at + j] += layer.bias[r];
            });
        Real *slope = kept_[l].slope.data() + from, *curvature = kept_[l].curvature.data() + from;
        std::visit(
            [&](const auto& function) {
#pragma omp simd
                for (std::int64_t k = 0; k < size; ++k) {
                    const Real z = value[k];
                    Real y;
                    const Real d = function(z, y);
                    curvature[k] = function.curvature(z, y, d);
                    slope[k] = d, value[k] = y;
                }
            },
            layer.activation);
        if (layer.idt) {
            std::copy_n(value, size, kept_[l].act.data() + from);
            scale_rows(tile, layer.n_out, layer.idt, value);
        }
        if (l > 0)
            add_panel_copies(layer, tile, before, value);
        else
            add_skipped(part, kept_[0].value.data());
    }
}

// Adds the copies of the first layer's skip connection to its output.
template <class Real>
void FittingTape<Real>::add_skipped(const Part& part, Real* output) {
    const LayerView<Real>& layer = layers_.front();
    if (!layer.skip) return;
    skipped_sum_.finish(part, skipped_.data(), layer.n_out);
    const std::int64_t from = part.tile.first * layer.n_out;
    for (std::int64_t k = from; k < from + static_cast<std::int64_t>(part.tile.n) * layer.n_out; ++k)
        output[k] += skipped_[k];
}

template <class Real>
void FittingTape<Real>::adjoint(const Tile& tile) {
    const int last = layers_.back().n_out;
    std::fill_n(kept_.back().adjoint.data() + tile.first * last, static_cast<std::int64_t>(tile.n) * last, Real(1));
    for (std::size_t l = kept_.size(); l-- > 0;) {
        const LayerView<Real>& layer = layers_[l];
        Kept& k = kept_[l];
        const std::int64_t from = tile.first * layer.n_out, size = static_cast<std::int64_t>(tile.n) * layer.n_out;
        for (std::int64_t at = from; at < from + size; ++at) k.z_adjoint[at] = k.adjoint[at] * k.slope[at];
        if (layer.idt) scale_rows(tile, layer.n_out, layer.idt, k.z_adjoint.data() + from);
        if (l == 0) break;
        Real* before = kept_[l - 1].adjoint.data() + tile.first * layer.n_in;
        set_panel_copies_adjoint(layer, tile, k.adjoint.data() + from, before);
        add_panel_product(tile, backward_of(layer), k.z_adjoint.data() + from, before);
    }
}

// Computes the part's share of the inputs' adjoints, and their contribution to the adjoint of its group's moments.
template <class Real>
void FittingTape<Real>::inputs_adjoint(const Part& part) {
    const LayerView<Real>& first = layers_.front();
    const Tile& group = part.group;
    const std::int64_t from = group.first * first.n_out;
    Real* own = moments_sum_.own(part, moments_bar_.data(), n_row());
    for (const InputPiece& piece : pieces(part.share)) {
        Real* y = inputs_adjoint_.data() + piece.start * tiling_.padded() + group.first * piece.width;
        piece_adjoint(piece, group, kept_[0].z_adjoint.data() + from, kept_[0].adjoint.data() + from, y);
        if (piece.is_features) inputs_.gather(piece, group, at(moments_, group, n_row()), y, own);
    }
}

// Sets y (width), the adjoints of a piece's inputs, from those of the first layer's z and output.
template <class Real>
void FittingTape<Real>::piece_adjoint(const InputPiece& piece, const Tile& group, const Real* z_bar,
                                      const Real* output_bar, Real* y) {
    const LayerView<Real>& layer = layers_.front();
    std::fill_n(y, static_cast<std::int64_t>(group.n) * piece.width, Real(0));
    add_panel_product(group, LeftMatrix<Real>::of(inputs_.weights(piece), piece.width, layer.n_out), z_bar, y);
    if (layer.skip) inputs_.add_copies_adjoint(piece, group, output_bar, y);
}

template <class Real>
void FittingTape<Real>::gradient(const Real* seeds, const Real* tangent, int threads,
                                 const std::vector<LayerGradient<Real>>& gradients, bool add, Real* moments_bar) {
    tiling_.run(
        [&](const Part& part) {
            set_panels(part.tile, n_, n_row(), tangent, at(moments_tangent_, part.tile, n_row()));
        },
        [&](const Part& part) {
            const Tile& group = part.group;
            const auto fill = [&](const InputPiece& piece, Real* inputs) {
                if (!piece.is_features) return false;
                inputs_.fill_tangent(piece, group, at(moments_, group, n_row()), at(moments_tangent_, group, n_row()),
                                     inputs);
                return true;
            };
            first_product(part, fill, kept_[0].tangent.data());
        },
        [&](const Part& part) { forward_tangent(part), adjoint_tangent(part.tile, seeds); },
        [&](const Part& part) { inputs_adjoint_tangent(part); },
        [&](const Part& part) {
            moments_sum_.finish(part, moments_bar_.data(), n_row());
            get_panels(part.tile, n_, n_row(), at(moments_bar_, part.tile, n_row()), moments_bar);
        });
    set_weights(threads, gradients, add);
    for (std::size_t l = 0; l < gradients.size(); ++l) {
        const int n_out = layers_[l].n_out;
        const auto sum_tiles = [&](const std::vector<Real>& sums, Real* out) {
            for (int k = 0; out && k < n_out; ++k) {
                Real sum = add ? out[k] : Real(0);
                for (int t = 0; t < tiling_.n_tiles(); ++t) sum += sums[t * n_out + k];
                out[k] = sum;
            }
        };
        sum_tiles(kept_[l].bias_sums, gradients[l].bias);
        sum_tiles(kept_[l].idt_sums, gradients[l].idt);
    }
}

// Computes the layers' tangents; replaces `curvature` by adjoint·act″·ż, as it is needed in this product only.
template <class Real>
void FittingTape<Real>::forward_tangent(const Part& part) {
    const Tile& tile = part.tile;
    for (std::size_t l = 0; l < kept_.size(); ++l) {
        const LayerView<Real>& layer = layers_[l];
        Kept& k = kept_[l];
        const std::int64_t from = tile.first * layer.n_out, size = static_cast<std::int64_t>(tile.n) * layer.n_out;
        Real* dot = k.tangent.data() + from;
        const Real* before = l > 0 ? kept_[l - 1].tangent.data() + tile.first * layer.n_in : nullptr;
        if (l == 0) {
            z_sum_.finish(part, k.tangent.data(), layer.n_out);
        } else {
            std::fill_n(dot, size, Real(0));
            add_panel_product(tile, forward_of(layer), before, dot);
        }
        const Real *adjoint = k.adjoint.data() + from, *slope = k.slope.data() + from;
        Real* curvature = k.curvature.data() + from;
        for (std::int64_t i = 0; i < size; ++i) {
            const Real z_dot = dot[i];
            curvature[i] *= adjoint[i] * z_dot;
            dot[i] = slope[i] * z_dot;
        }
        if (layer.idt) {
            Real* sums = k.idt_sums.data() + tile.index * layer.n_out;  // tangent's part; layer_adjoint adds the rest
            std::fill_n(sums, layer.n_out, Real(0));
            for_panel_rows<Real>(tile, layer.n_out, [&](int r, std::int64_t at, auto n) {
                for (int j = 0; j < n; ++j) sums[r] += adjoint[at + j] * dot[at + j];
            });
            scale_rows(tile, layer.n_out, layer.idt, dot);
        }
        if (l > 0)
            add_panel_copies(layer, tile, before, dot);
        else
            add_skipped(part, k.tangent.data());
    }
}

// Turns q = ∂S/∂output of a layer into ∂S/∂z in place; sums its gradients of bias and idt, and packs both adjoints.
template <class Real>
void FittingTape<Real>::layer_adjoint(const Tile& tile, int l, Real* q) {
    const LayerView<Real>& layer = layers_[l];
    Kept& k = kept_[l];
    const int n_out = layer.n_out, n_atoms = atoms_of(tile);
    const std::int64_t from = tile.first * n_out, size = static_cast<std::int64_t>(tile.n) * n_out;
    const Real *slope = k.slope.data() + from, *bend = k.curvature.data() + from;
    if (layer.idt) {
        const Real* act = k.act.data() + from;
        Real* sums = k.idt_sums.data() + tile.index * n_out;
        for_panel_rows<Real>(tile, n_out, [&](int r, std::int64_t at, auto n) {
            for (int j = 0; j < n; ++j) sums[r] += q[at + j] * act[at + j];
        });
    }
    for (std::int64_t i = 0; i < size; ++i) q[i] = q[i] * slope[i] + bend[i];
    if (layer.idt) scale_rows(tile, n_out, layer.idt, q);
    Real* sums = k.bias_sums.data() + tile.index * n_out;
    std::fill_n(sums, n_out, Real(0));
    for_panel_rows<Real>(tile, n_out, [&](int r, std::int64_t at, auto n) {
        for (int j = 0; j < n; ++j) sums[r] += q[at + j];
    });
    Real* rows = sized(Scratch::own().rows, size);
    const Tile own{0, tile.n, 0};
    const Real* adjoints[] = {q, k.z_adjoint.data() + from};
    for (int which = 0; which < 2; ++which) {
        get_panels(own, n_atoms, n_out, adjoints[which], rows);
        k.right[which][tile.index].pack_rows(n_atoms, n_out, [&](int i) {
            return [row = rows + static_cast<std::int64_t>(i) * n_out](int j) { return row[j]; };
        });
    }
}

// Backpropagates S through the layers; ∂S/∂output and ∂S/∂z of the first are left in `q_output_` and `q_z_`.
template <class Real>
void FittingTape<Real>::adjoint_tangent(const Tile& tile, const Real* seeds) {
    Scratch& scratch = Scratch::own();
    Real* q = sized(scratch.q, tile.n);
    set_panels(tile, n_, 1, seeds, q);
    for (std::size_t l = kept_.size(); --l > 0;) {
        const LayerView<Real>& layer = layers_[l];
        Real* next = sized(scratch.next, static_cast<std::size_t>(tile.n) * layer.n_in);
        set_panel_copies_adjoint(layer, tile, q, next);
        layer_adjoint(tile, static_cast<int>(l), q);
        add_panel_product(tile, backward_of(layer), q, next);
        std::swap(scratch.q, scratch.next);
        q = scratch.q.data();
    }
    const std::int64_t from = tile.first * layers_.front().n_out;
    const std::int64_t size = static_cast<std::int64_t>(tile.n) * layers_.front().n_out;
    if (layers_.front().skip) std::copy_n(q, size, q_output_.data() + from);
    layer_adjoint(tile, 0, q);
    std::copy_n(q, size, q_z_.data() + from);
}

// Computes the part's share of the moments' gradient.
template <class Real>
void FittingTape<Real>::inputs_adjoint_tangent(const Part& part) {
    const Tile& group = part.group;
    const std::int64_t from = group.first * layers_.front().n_out;
    Real* own = moments_sum_.own(part, moments_bar_.data(), n_row());
    for (const InputPiece& piece : pieces(part.share)) {
        if (!piece.is_features) continue;
        Real* y = sized(Scratch::own().inputs, static_cast<std::size_t>(group.n) * piece.width);
        piece_adjoint(piece, group, q_z_.data() + from, layers_.front().skip ? q_output_.data() + from : nullptr, y);
        inputs_.gather(piece, group, at(moments_, group, n_row()), y, own);
        // Ė is bilinear in the moments and their tangent.
        inputs_.gather(piece, group, at(moments_tangent_, group, n_row()),
                       inputs_adjoint_.data() + piece.start * tiling_.padded() + group.first * piece.width, own);
    }
}

template class FittingTape<double>;
template class FittingTape<float>;

}  // namespace dphpc
