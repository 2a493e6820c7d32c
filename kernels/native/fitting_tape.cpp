#include "fitting_tape.h"

#include <algorithm>

#include "parallel.h"

namespace dphpc {
namespace {

constexpr int tile_size = 96;  // most atoms of a tile

// A thread's memory, kept from tile to tile.
template <class Real>
struct Scratch {
    std::vector<Real> chunk, other, q, next;

    static Scratch& own() {
        thread_local Scratch scratch;
        return scratch;
    }
};

}  // namespace

template <class Real>
void FittingTape<Real>::energy_and_adjoint(const NetInputs<Real>& x, std::int64_t n, int threads, Real* energies,
                                           Real* moments_adjoint) {
    x_ = x, tiling_ = Tiling(n, threads, tile_size);
    const int n_tiles = tiling_.n_tiles();
    for (auto* sum : {&z_sum_, &skipped_sum_, &moments_sum_}) sum->prepare(n_tiles);
    kept_.resize(net_.layers.size());
    for (std::size_t l = 0; l < kept_.size(); ++l) {
        const std::size_t size = n * net_.layers[l].step();
        Kept& k = kept_[l];
        for (auto* a : {&k.value, &k.slope, &k.curvature, &k.adjoint, &k.z_adjoint, &k.tangent}) sized(*a, size);
        if (!net_.layers[l].idt.empty()) sized(k.act, size), sized(k.idt_sums, n_tiles * net_.layers[l].step());
        sized(k.bias_sums, n_tiles * net_.layers[l].step());
        for (auto& right : k.right) right.resize(n_tiles);
    }
    const PackedLayer<Real>& first = net_.layers.front();
    sized(q_z_, n * first.step());
    if (first.skip) sized(skipped_, n * first.step()), sized(q_output_, n * first.step());
    inputs_adjoint_.resize(net_.chunks.size());
    for (std::size_t c = 0; c < net_.chunks.size(); ++c)
        sized(inputs_adjoint_[c], n * padded<Real>(net_.chunks[c].width));
    tiling_.run(
        [&](const Part& part) {
            const auto fill = [&](const Chunk<Real>& chunk, Real* inputs) {
                net_.fill(chunk, x_, part.group.first, part.group.n, inputs);
                return true;
            };
            first_product(part, fill, kept_[0].value.data());
        },
        [&](const Part& part) { forward(part), adjoint(part.tile); },
        [&](const Part& part) { inputs_adjoint(part, moments_adjoint); },
        [&](const Part& part) { moments_sum_.finish(part, moments_adjoint, n_row()); });
    for (std::int64_t i = 0; i < n; ++i) energies[i] = kept_.back().value[i * net_.layers.back().step()];
}

// Computes the part's share of x·w of the first layer, and of the copies of its skip connection.
template <class Real>
template <class Fill>
void FittingTape<Real>::first_product(const Part& part, Fill&& fill, Real* z) {
    const PackedLayer<Real>& layer = net_.layers.front();
    Real* own = z_sum_.own(part, z, layer.step());
    Real* skipped = layer.skip ? skipped_sum_.own(part, skipped_.data(), layer.step()) : nullptr;
    add_first_product(net_, part.share, part.group.n, fill, Scratch<Real>::own().chunk, own, skipped);
}

template <class Real>
void FittingTape<Real>::forward(const Part& part) {
    const Tile& tile = part.tile;
    for (std::size_t l = 0; l < kept_.size(); ++l) {
        const PackedLayer<Real>& layer = net_.layers[l];
        const int step = layer.step();
        const std::int64_t from = tile.first * step, size = static_cast<std::int64_t>(tile.n) * step;
        Real* value = kept_[l].value.data() + from;
        const Real* before = l > 0 ? kept_[l - 1].value.data() + tile.first * layer.step_in() : nullptr;
        if (l == 0) {
            z_sum_.finish(part, kept_[0].value.data(), step);
        } else {
            std::fill_n(value, size, Real(0));
            layer.forward.add_product(tile.n, before, layer.step_in(), 1, value, step);
        }
        for (int i = 0; i < tile.n; ++i)
            for (int k = 0; k < step; ++k) value[i * step + k] += layer.bias[k];
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
        if (!layer.idt.empty()) {
            std::copy_n(value, size, kept_[l].act.data() + from);
            for (int i = 0; i < tile.n; ++i)
                for (int k = 0; k < layer.n_out; ++k) value[i * step + k] *= layer.idt[k];
        }
        if (l > 0)
            add_copies(layer, tile.n, before, value);
        else
            add_skipped(part, kept_[0].value.data());
    }
}

// Adds the copies of the first layer's skip connection to its output.
template <class Real>
void FittingTape<Real>::add_skipped(const Part& part, Real* output) {
    const PackedLayer<Real>& layer = net_.layers.front();
    if (!layer.skip) return;
    skipped_sum_.finish(part, skipped_.data(), layer.step());
    const std::int64_t from = part.tile.first * layer.step();
    for (std::int64_t k = from; k < from + static_cast<std::int64_t>(part.tile.n) * layer.step(); ++k)
        output[k] += skipped_[k];
}

template <class Real>
void FittingTape<Real>::adjoint(const Tile& tile) {
    const int last = net_.layers.back().step();
    std::fill_n(kept_.back().adjoint.data() + tile.first * last, static_cast<std::int64_t>(tile.n) * last, Real(1));
    for (std::size_t l = kept_.size(); l-- > 0;) {
        const PackedLayer<Real>& layer = net_.layers[l];
        Kept& k = kept_[l];
        const int step = layer.step();
        const std::int64_t from = tile.first * step;
        for (std::int64_t at = from; at < from + static_cast<std::int64_t>(tile.n) * step; ++at)
            k.z_adjoint[at] = k.adjoint[at] * k.slope[at];
        if (!layer.idt.empty())
            for (int i = 0; i < tile.n; ++i)
                for (int j = 0; j < layer.n_out; ++j) k.z_adjoint[from + i * step + j] *= layer.idt[j];
        if (l == 0) break;
        Real* before = kept_[l - 1].adjoint.data() + tile.first * layer.step_in();
        set_copies_adjoint(layer, tile.n, k.adjoint.data() + from, before);
        layer.backward.add_product(tile.n, k.z_adjoint.data() + from, step, 1, before, layer.step_in());
    }
}

// Computes the part's share of the inputs' adjoints, and their contribution to the adjoint of its group's moments.
template <class Real>
void FittingTape<Real>::inputs_adjoint(const Part& part, Real* moments_adjoint) {
    const PackedLayer<Real>& first = net_.layers.front();
    const Tile& group = part.group;
    const std::int64_t from = group.first * first.step();
    Real* own = moments_sum_.own(part, moments_adjoint, n_row());
    for (int c = 0; c < static_cast<int>(net_.chunks.size()); ++c) {
        if (!part.share.takes(c)) continue;
        const Chunk<Real>& chunk = net_.chunks[c];
        const int width = padded<Real>(chunk.width);
        Real* y = inputs_adjoint_[c].data() + group.first * width;
        std::fill_n(y, static_cast<std::int64_t>(group.n) * width, Real(0));
        chunk.backward.add_product(group.n, kept_[0].z_adjoint.data() + from, first.step(), 1, y, width);
        if (first.skip)
            chunk.skip_backward.add_product(group.n, kept_[0].adjoint.data() + from, first.step(), 1, y, width);
        if (chunk.is_features) net_.gather(chunk, x_.moments + group.first * n_row(), y, 0, group.n, own);
    }
}

template <class Real>
void FittingTape<Real>::gradient(const Real* seeds, const Real* tangent, int threads,
                                 const std::vector<LayerGradient<Real>>& gradients, bool add, Real* moments_bar) {
    struct Block {
        int layer, first, last;  // rows of a layer's weights
    };
    std::vector<Block> blocks;
    for (int l = 1; l < static_cast<int>(gradients.size()); ++l) {
        if (!gradients[l].w) continue;
        const int rows = net_.layers[l].n_in, n = (rows + piece_width - 1) / piece_width;
        for (int b = 0; b < n; ++b) blocks.push_back({l, rows * b / n, rows * (b + 1) / n});
    }
    const int n_pieces = gradients[0].w ? static_cast<int>(pieces_.size()) : 0;
    const int n_parts = n_pieces + static_cast<int>(blocks.size());
    tiling_.run(
        [&](const Part& part) {
            const auto fill = [&](const Chunk<Real>& chunk, Real* inputs) {
                if (!chunk.is_features) return false;  // the tangent of other inputs is zero
                net_.fill_tangent(chunk, x_.moments, tangent, part.group.first, part.group.n, inputs);
                return true;
            };
            first_product(part, fill, kept_[0].tangent.data());
        },
        [&](const Part& part) { forward_tangent(part), adjoint_tangent(part.tile, seeds); },
        [&](const Part& part) { inputs_adjoint_tangent(part, tangent, moments_bar); },
        [&](const Part& part) { moments_sum_.finish(part, moments_bar, n_row()); });
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int part = 0; part < n_parts; ++part) {
        if (part < n_pieces) {
            first_weights(pieces_[part], tangent, add, gradients[0].w);
        } else {
            const Block& b = blocks[part - n_pieces];
            weight_rows(b.layer, b.first, b.last, add, gradients[b.layer].w);
        }
    }
    for (std::size_t l = 0; l < gradients.size(); ++l) {
        const int step = net_.layers[l].step();
        const auto sum_tiles = [&](const std::vector<Real>& sums, Real* out) {
            for (int k = 0; out && k < net_.layers[l].n_out; ++k) {
                Real sum = add ? out[k] : Real(0);
                for (int t = 0; t < tiling_.n_tiles(); ++t) sum += sums[t * step + k];
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
        const PackedLayer<Real>& layer = net_.layers[l];
        Kept& k = kept_[l];
        const int step = layer.step();
        const std::int64_t from = tile.first * step, size = static_cast<std::int64_t>(tile.n) * step;
        Real* dot = k.tangent.data() + from;
        const Real* before = l > 0 ? kept_[l - 1].tangent.data() + tile.first * layer.step_in() : nullptr;
        if (l == 0) {
            z_sum_.finish(part, k.tangent.data(), step);
        } else {
            std::fill_n(dot, size, Real(0));
            layer.forward.add_product(tile.n, before, layer.step_in(), 1, dot, step);
        }
        const Real *adjoint = k.adjoint.data() + from, *slope = k.slope.data() + from;
        Real* curvature = k.curvature.data() + from;
        for (std::int64_t i = 0; i < size; ++i) {
            const Real z_dot = dot[i];
            curvature[i] *= adjoint[i] * z_dot;
            dot[i] = slope[i] * z_dot;
        }
        if (!layer.idt.empty()) {
            Real* sums = k.idt_sums.data() + tile.index * step;  // tangent's part; layer_adjoint adds the rest
            std::fill_n(sums, step, Real(0));
            for (int i = 0; i < tile.n; ++i)
                for (int j = 0; j < layer.n_out; ++j) {
                    sums[j] += adjoint[i * step + j] * dot[i * step + j];
                    dot[i * step + j] *= layer.idt[j];
                }
        }
        if (l > 0)
            add_copies(layer, tile.n, before, dot);
        else
            add_skipped(part, k.tangent.data());
    }
}

// Turns q = ∂S/∂output of a layer into ∂S/∂z in place; sums its gradients of bias and idt, and packs both adjoints.
template <class Real>
void FittingTape<Real>::layer_adjoint(const Tile& tile, int l, Real* q) {
    const PackedLayer<Real>& layer = net_.layers[l];
    Kept& k = kept_[l];
    const int step = layer.step();
    const std::int64_t from = tile.first * step;
    const Real *slope = k.slope.data() + from, *bend = k.curvature.data() + from;
    Real *bias_sums = k.bias_sums.data() + tile.index * step, *idt_sums = k.idt_sums.data() + tile.index * step;
    std::fill_n(bias_sums, step, Real(0));
    for (std::int64_t i = 0; i < tile.n; ++i) {
        Real* row = q + i * step;
        if (!layer.idt.empty()) {
            const Real* act = k.act.data() + from + i * step;
            for (int j = 0; j < layer.n_out; ++j) idt_sums[j] += row[j] * act[j];
        }
        for (int j = 0; j < step; ++j) row[j] = row[j] * slope[i * step + j] + bend[i * step + j];
        if (!layer.idt.empty())
            for (int j = 0; j < layer.n_out; ++j) row[j] *= layer.idt[j];
        for (int j = 0; j < step; ++j) bias_sums[j] += row[j];
    }
    const auto rows_of = [step](const Real* x) {
        return [x, step](int i) { return [row = x + static_cast<std::int64_t>(i) * step](int j) { return row[j]; }; };
    };
    k.right[0][tile.index].pack_rows(tile.n, layer.n_out, rows_of(q));
    k.right[1][tile.index].pack_rows(tile.n, layer.n_out, rows_of(k.z_adjoint.data() + from));
}

// Backpropagates S through the layers; ∂S/∂output and ∂S/∂z of the first are left in `q_output_` and `q_z_`.
template <class Real>
void FittingTape<Real>::adjoint_tangent(const Tile& tile, const Real* seeds) {
    Scratch<Real>& scratch = Scratch<Real>::own();
    const int last = net_.layers.back().step();
    Real* q = sized(scratch.q, static_cast<std::size_t>(tile.n) * last);
    for (int i = 0; i < tile.n; ++i) std::fill_n(q + i * last, last, seeds[tile.first + i]);
    for (std::size_t l = kept_.size(); --l > 0;) {
        const PackedLayer<Real>& layer = net_.layers[l];
        Real* next = sized(scratch.next, static_cast<std::size_t>(tile.n) * layer.step_in());
        set_copies_adjoint(layer, tile.n, q, next);
        layer_adjoint(tile, static_cast<int>(l), q);
        layer.backward.add_product(tile.n, q, layer.step(), 1, next, layer.step_in());
        std::swap(scratch.q, scratch.next);
        q = scratch.q.data();
    }
    const int step = net_.layers.front().step();
    const std::int64_t from = tile.first * step, size = static_cast<std::int64_t>(tile.n) * step;
    if (net_.layers.front().skip) std::copy_n(q, size, q_output_.data() + from);
    layer_adjoint(tile, 0, q);
    std::copy_n(q, size, q_z_.data() + from);
}

// As `inputs_adjoint`, with the derivatives of S.
template <class Real>
void FittingTape<Real>::inputs_adjoint_tangent(const Part& part, const Real* tangent, Real* moments_bar) {
    const PackedLayer<Real>& first = net_.layers.front();
    const Tile& group = part.group;
    const std::int64_t from = group.first * first.step();
    Real* own = moments_sum_.own(part, moments_bar, n_row());
    for (int c = 0; c < static_cast<int>(net_.chunks.size()); ++c) {
        const Chunk<Real>& chunk = net_.chunks[c];
        if (!chunk.is_features || !part.share.takes(c)) continue;
        const int width = padded<Real>(chunk.width);
        const std::int64_t size = static_cast<std::int64_t>(group.n) * width;
        Real* y = sized(Scratch<Real>::own().chunk, size);
        std::fill_n(y, size, Real(0));
        chunk.backward.add_product(group.n, q_z_.data() + from, first.step(), 1, y, width);
        if (first.skip) chunk.skip_backward.add_product(group.n, q_output_.data() + from, first.step(), 1, y, width);
        const std::int64_t at = group.first * n_row();
        net_.gather(chunk, x_.moments + at, y, 0, group.n, own);
        // Ė is bilinear in the moments and their tangent.
        net_.gather(chunk, tangent + at, inputs_adjoint_[c].data() + group.first * width, 0, group.n, own);
    }
}

// sum (rows, padded n_out) += a tile's contribution xᵀ·q + ẋᵀ·p to rows of the weight gradient; x, ẋ (n, width).
template <class Real>
void FittingTape<Real>::add_weight_rows(int l, int tile, int rows, const Real* x, const Real* x_dot, int width,
                                        Real* sum) const {
    const int step = net_.layers[l].step();
    kept_[l].right[0][tile].add_product(rows, x, 1, width, sum, step);
    kept_[l].right[1][tile].add_product(rows, x_dot, 1, width, sum, step);
}

// Computes the rows of the first layer's weight gradient that belong to a piece of its inputs.
template <class Real>
void FittingTape<Real>::first_weights(const Chunk<Real>& piece, const Real* tangent, bool add, Real* w) {
    Scratch<Real>& scratch = Scratch<Real>::own();
    const int step = net_.layers.front().step(), width = padded<Real>(piece.width);
    Real* sum = sized(scratch.q, static_cast<std::size_t>(piece.width) * step);
    std::fill_n(sum, static_cast<std::size_t>(piece.width) * step, Real(0));
    for (int t = 0; t < tiling_.n_tiles(); ++t) {
        const Tile tile = tiling_.tile(t);
        const std::size_t size = static_cast<std::size_t>(tile.n) * width;
        Real *inputs = sized(scratch.chunk, size), *dots = sized(scratch.other, size);
        net_.fill(piece, x_, tile.first, tile.n, inputs);
        net_.fill_tangent(piece, x_.moments, tangent, tile.first, tile.n, dots);
        add_weight_rows(0, t, piece.width, inputs, dots, width, sum);
    }
    for (int i = 0; i < piece.width; ++i)
        net_.set_gradient_rows(piece, i, sum + static_cast<std::size_t>(i) * step, add, w);
}

// Computes rows first … last − 1 of the weight gradient of a later layer.
template <class Real>
void FittingTape<Real>::weight_rows(int l, int first, int last, bool add, Real* w) {
    const PackedLayer<Real>& layer = net_.layers[l];
    const int step = layer.step(), width = layer.step_in(), rows = last - first;
    Real* sum = sized(Scratch<Real>::own().q, static_cast<std::size_t>(rows) * step);
    std::fill_n(sum, static_cast<std::size_t>(rows) * step, Real(0));
    for (int t = 0; t < tiling_.n_tiles(); ++t) {
        const std::int64_t from = tiling_.tile(t).first * width + first;
        add_weight_rows(l, t, rows, kept_[l - 1].value.data() + from, kept_[l - 1].tangent.data() + from, width, sum);
    }
    for (int i = 0; i < rows; ++i) {
        const Real* row = sum + static_cast<std::size_t>(i) * step;
        Real* out = w + static_cast<std::size_t>(first + i) * layer.n_out;
        for (int j = 0; j < layer.n_out; ++j) out[j] = add ? out[j] + row[j] : row[j];
    }
}

template class FittingTape<double>;
template class FittingTape<float>;

}  // namespace dphpc
