// The gradient of the weights, block by block of their rows.
#include "fitting_tape.h"
#include "parallel.h"

namespace dphpc {

// Sets `rows` rows of a layer's weight gradient (rows, n_out), or with `add` adds to them: Σ xᵀ·q + ẋᵀ·p over the tiles.
// left(tile, which) returns x or ẋ of the tile, (rows, atoms), in memory that lasts until the next call; null for zeros.
template <class Real>
template <class Left>
void FittingTape<Real>::set_weight_rows(int l, int rows, bool add, Real* w, Left&& left) {
    const int n_out = layers_[l].n_out, step = padded<Real>(n_out);
    const bool in_place = step == n_out;
    Real* sum = in_place ? w : sized(Scratch::own().sum, static_cast<std::size_t>(rows) * step);
    if (!in_place || !add) std::fill_n(sum, static_cast<std::size_t>(rows) * step, Real(0));
    for (int t = 0; t < tiling_.n_tiles(); ++t) {
        const Tile tile = tiling_.tile(t);
        for (int which = 0; which < 2; ++which)
            if (const Real* x = left(tile, which)) kept_[l].right[which][t].add_product(rows, x, tile.n, 1, sum, step);
    }
    for (int i = 0; i < rows && !in_place; ++i)
        for (int j = 0; j < n_out; ++j) {
            Real& element = w[static_cast<std::size_t>(i) * n_out + j];
            element = (add ? element : Real(0)) + sum[static_cast<std::size_t>(i) * step + j];
        }
}

// Computes the rows of the first layer's weight gradient that belong to a piece of its inputs.
template <class Real>
void FittingTape<Real>::first_weights(const InputPiece& piece, bool add, Real* w) {
    Scratch& scratch = Scratch::own();
    const int n_out = layers_.front().n_out;
    const auto left = [&](const Tile& tile, int which) -> const Real* {
        if (which == 1 && !piece.is_features) return nullptr;
        Real* inputs = sized(scratch.inputs, static_cast<std::size_t>(piece.width) * tile.n);
        const Real* moments = at(moments_, tile, n_row());
        if (which == 0)
            inputs_.fill(piece, tile, moments, at(columns_, tile, inputs_.n_columns), inputs, tile.n);
        else
            inputs_.fill_tangent(piece, tile, moments, at(moments_tangent_, tile, n_row()), inputs, tile.n);
        return inputs;
    };
    if (inputs_.is_plain(piece))
        return set_weight_rows(0, piece.width, add, w + static_cast<std::size_t>(inputs_.first_row(piece)) * n_out, left);
    Real* folded = sized(scratch.folded, static_cast<std::size_t>(piece.width) * n_out);
    set_weight_rows(0, piece.width, false, folded, left);
    inputs_.for_rows(piece, [&](int i, int row) {
        const Real* from = folded + static_cast<std::size_t>(i) * n_out;
        Real* out = w + static_cast<std::size_t>(row) * n_out;
        for (int j = 0; j < n_out; ++j) out[j] = add ? out[j] + from[j] : from[j];
    });
}

// Computes rows first … last − 1 of the weight gradient of a later layer.
template <class Real>
void FittingTape<Real>::weight_rows(int l, int first, int last, bool add, Real* w) {
    const int n_in = layers_[l].n_in, rows = last - first;
    const auto left = [&](const Tile& tile, int which) {
        const std::vector<Real>& x = which == 0 ? kept_[l - 1].value : kept_[l - 1].tangent;
        Real* out = sized(Scratch::own().inputs, static_cast<std::size_t>(rows) * tile.n);
        for_panels<Real>(tile, [&](std::int64_t at, auto n) {
            const Real* panel = x.data() + (tile.first + at) * n_in + first * n;
            for (int i = 0; i < rows; ++i) std::copy_n(panel + i * n, static_cast<int>(n), out + i * tile.n + at);
        });
        return out;
    };
    set_weight_rows(l, rows, add, w + static_cast<std::size_t>(first) * layers_[l].n_out, left);
}

template <class Real>
void FittingTape<Real>::set_weights(int threads, const std::vector<LayerGradient<Real>>& gradients, bool add) {
    struct Block {
        int layer, first, last;   // rows of a layer's weights, or of the first layer
        const InputPiece* piece;  // the rows of a piece of inputs
    };
    // The blocks of either half of each layer's rows are behind one another, so that two threads that share work write
    // gradients of the weights that they have read, as Adam does (adam.h).
    std::vector<Block> blocks;
    for (const int half : {0, 1}) {
        if (gradients[0].w)
            for (const InputPiece& piece : weight_pieces_[half]) blocks.push_back({0, 0, 0, &piece});
        for (int l = 1; l < static_cast<int>(gradients.size()); ++l) {
            if (!gradients[l].w) continue;
            const int first = layers_[l].n_in * half / 2, rows = layers_[l].n_in * (half + 1) / 2 - first;
            const int n = (rows + piece_width - 1) / piece_width;
            for (int b = 0; b < n; ++b) blocks.push_back({l, first + rows * b / n, first + rows * (b + 1) / n, nullptr});
        }
    }
    const int n_blocks = static_cast<int>(blocks.size());
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int b = 0; b < n_blocks; ++b) {
        const auto& [l, first, last, piece] = blocks[b];
        if (piece)
            first_weights(*piece, add, gradients[0].w);
        else
            weight_rows(l, first, last, add, gradients[l].w);
    }
}

template void FittingTape<double>::set_weights(int, const std::vector<LayerGradient<double>>&, bool);
template void FittingTape<float>::set_weights(int, const std::vector<LayerGradient<float>>&, bool);

}  // namespace dphpc
