#include "fitting.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace dphpc {
namespace {

constexpr int chunk_width = 400;  // inputs that are formed at a time, about

template <class Real>
Real* sized(std::vector<Real>& buffer, std::size_t n) {
    if (buffer.size() < n) buffer.resize(n);
    return buffer.data();
}

// value = act(z)·idt, slope = act′(z)·idt, with z in `value`.
template <class Real, class Function>
void activate_row(const Function& function, int n, const Real* idt, Real* value, Real* slope) {
#pragma omp simd
    for (int k = 0; k < n; ++k) {
        Real y;
        slope[k] = function(value[k], y);
        value[k] = y;
    }
    if (idt)
        for (int k = 0; k < n; ++k) value[k] *= idt[k], slope[k] *= idt[k];
}

}  // namespace

Activation activation_of(const std::string& name, double threshold) {
    if (name == "tanh") return Tanh{};
    if (name == "linear" || name == "none") return Linear{};
    if (name == "sigmoid") return Sigmoid{};
    if (name == "softplus") return Softplus{};
    if (name == "relu") return Relu{};
    if (name == "relu6") return Relu6{};
    if (name == "gelu" || name == "gelu_tf") return Gelu{};
    if (name == "silu") return Silu{};
    if (name == "silut" || name == "custom_silu") {
        const double g = 1.0 / (1.0 + std::exp(-threshold));
        return Silut{threshold, threshold * g, g + threshold * g * (1.0 - g)};
    }
    throw std::invalid_argument("no activation function '" + name + "'");
}

template <class Real>
FittingNet<Real>::FittingNet(const std::vector<LayerView<Real>>& layers, int channels_, int axis_)
    : channels(channels_), axis(axis_), n_columns(layers.front().n_in - channels_ * axis_) {
    for (const LayerView<Real>& view : layers) {
        layers_.push_back({view.n_in, view.n_out, view.skip, view.activation, {}, {}, {}, {}});
        Layer& layer = layers_.back();
        layer.bias.assign(padded<Real>(view.n_out), Real(0));
        if (view.bias) std::copy_n(view.bias, view.n_out, layer.bias.begin());
        if (view.idt) layer.idt.assign(view.idt, view.idt + view.n_out);
        if (layers_.size() == 1) continue;
        const auto at = [&](int i, int j) { return view.w[static_cast<std::size_t>(i) * view.n_out + j]; };
        layer.forward.pack(view.n_in, view.n_out, at);
        layer.backward.pack(view.n_out, view.n_in, [&](int j, int i) { return at(i, j); });
    }
    const int step = std::max(1, chunk_width / std::max(1, channels));
    for (int k = 0; k < axis; k += step) add_chunk(layers.front(), k, std::min(axis, k + step), true);
    for (int k = 0; k < n_columns; k += chunk_width)
        add_chunk(layers.front(), k, std::min(n_columns, k + chunk_width), false);
}

template <class Real>
void FittingNet<Real>::add_chunk(const LayerView<Real>& layer, int first, int last, bool is_features) {
    struct Rows {
        int one, other;  // rows of the weights that an input meets; other is −1 where there is only one
    };
    std::vector<Rows> rows;
    for (int k = first; k < last; ++k)
        if (!is_features) {
            rows.push_back({channels * axis + k, -1});
        } else {
            for (int m = k; m < channels; ++m) rows.push_back({m * axis + k, m < axis && m > k ? k * axis + m : -1});
        }
    const auto weight = [&](int i, int j) {
        const auto at = [&](int row) { return layer.w[static_cast<std::size_t>(row) * layer.n_out + j]; };
        return rows[i].other < 0 ? at(rows[i].one) : at(rows[i].one) + at(rows[i].other);
    };
    const auto copies = [&](int i, int j) {
        return static_cast<Real>((j % layer.n_in == rows[i].one) + (j % layer.n_in == rows[i].other));
    };
    const int width = static_cast<int>(rows.size());
    chunks_.push_back({first, last, width, is_features, {}, {}, {}, {}});
    Chunk& chunk = chunks_.back();
    chunk.forward.pack(width, layer.n_out, weight);
    chunk.backward.pack(layer.n_out, width, [&](int j, int i) { return weight(i, j); });
    if (layer.skip) {
        chunk.skip_forward.pack(width, layer.n_out, copies);
        chunk.skip_backward.pack(layer.n_out, width, [&](int j, int i) { return copies(i, j); });
    }
}

// inputs (n, padded width) of a chunk
template <class Real>
void FittingNet<Real>::fill(const FittingTile<Real>& tile, const Chunk& chunk, Real* inputs) const {
    for (int i = 0; i < tile.n; ++i) {
        Real* out = inputs + static_cast<std::size_t>(i) * padded<Real>(chunk.width);
        if (!chunk.is_features) {
            const Real* columns = tile.columns + static_cast<std::size_t>(i) * n_columns;
            std::copy(columns + chunk.first, columns + chunk.last, out);
            continue;
        }
        const Real* a = tile.moments + static_cast<std::size_t>(i) * n_rows * channels;
        for (int k = chunk.first; k < chunk.last; ++k) {
            const Real *b = a + channels, *c = b + channels, *d = c + channels;
            const Real ak = a[k], bk = b[k], ck = c[k], dk = d[k];
#pragma omp simd
            for (int m = k; m < channels; ++m) out[m - k] = ak * a[m] + bk * b[m] + ck * c[m] + dk * d[m];
            out += channels - k;
        }
    }
}

// What the adjoints of a chunk's inputs add to those of the moments.
template <class Real>
void FittingNet<Real>::gather(const FittingTile<Real>& tile, const Chunk& chunk, const Real* adjoint) const {
    for (int i = 0; i < tile.n; ++i) {
        const Real* y = adjoint + static_cast<std::size_t>(i) * padded<Real>(chunk.width);
        if (!chunk.is_features) {
            if (tile.columns_adjoint)
                std::copy_n(y, chunk.width, tile.columns_adjoint + static_cast<std::size_t>(i) * n_columns + chunk.first);
            continue;
        }
        const Real* a = tile.moments + static_cast<std::size_t>(i) * n_rows * channels;
        Real* out = tile.moments_adjoint + static_cast<std::size_t>(i) * n_rows * channels;
        for (int k = chunk.first; k < chunk.last; ++k) {
            for (int r = 0; r < n_rows; ++r) {
                const Real* row = a + r * channels;
                Real *out_row = out + r * channels, sum = 0;
                const Real row_k = row[k];
#pragma omp simd reduction(+ : sum)
                for (int m = k; m < channels; ++m) {
                    sum += y[m - k] * row[m];
                    out_row[m] += y[m - k] * row_k;
                }
                out_row[k] += sum;
            }
            y += channels - k;
        }
    }
}

template <class Real>
void FittingNet<Real>::forward(FittingTile<Real>& tile) const {
    const int n = tile.n;
    tile.value.resize(layers_.size()), tile.slope.resize(layers_.size());
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        const int step = padded<Real>(layer.n_out);
        Real* value = sized(tile.value[l], static_cast<std::size_t>(n) * step);
        Real* slope = sized(tile.slope[l], static_cast<std::size_t>(n) * step);
        for (int i = 0; i < n; ++i) std::copy(layer.bias.begin(), layer.bias.end(), value + static_cast<std::size_t>(i) * step);
        Real* skipped = nullptr;  // the first layer's skip connection
        if (l > 0) {
            layer.forward.add_product(n, tile.value[l - 1].data(), padded<Real>(layer.n_in), 1, value, step);
        } else {
            if (layer.skip) {
                skipped = sized(tile.next, static_cast<std::size_t>(n) * step);
                std::fill_n(skipped, static_cast<std::size_t>(n) * step, Real(0));
            }
            for (const Chunk& chunk : chunks_) {
                const int width = padded<Real>(chunk.width);
                Real* inputs = sized(tile.inputs, static_cast<std::size_t>(n) * width);
                fill(tile, chunk, inputs);
                chunk.forward.add_product(n, inputs, width, 1, value, step);
                if (skipped) chunk.skip_forward.add_product(n, inputs, width, 1, skipped, step);
            }
        }
        std::visit(
            [&](const auto& function) {
                for (std::int64_t i = 0; i < n; ++i) {
                    Real* row = value + i * step;
                    activate_row(function, layer.n_out, layer.idt.empty() ? nullptr : layer.idt.data(), row, slope + i * step);
                    if (skipped)
                        for (int k = 0; k < layer.n_out; ++k) row[k] += skipped[i * step + k];
                    else
                        for (int from = 0; from < layer.skip * layer.n_in; from += layer.n_in)
                            for (int k = 0; k < layer.n_in; ++k)
                                row[from + k] += tile.value[l - 1][i * padded<Real>(layer.n_in) + k];
                }
            },
            layer.activation);
    }
}

template <class Real>
void FittingNet<Real>::backward(FittingTile<Real>& tile) const {
    const int n = tile.n;
    const int last = padded<Real>(layers_.back().n_out);
    std::fill_n(sized(tile.adjoint, static_cast<std::size_t>(n) * last), static_cast<std::size_t>(n) * last, Real(1));
    for (std::size_t l = layers_.size(); l-- > 0;) {
        const Layer& layer = layers_[l];
        const int step = padded<Real>(layer.n_out), step_in = padded<Real>(layer.n_in);
        Real* slope = tile.slope[l].data();  // becomes the adjoint of z
        for (std::int64_t i = 0; i < n; ++i)
            for (int k = 0; k < layer.n_out; ++k) slope[i * step + k] *= tile.adjoint[i * step + k];
        if (l == 0) break;
        Real* next = sized(tile.next, static_cast<std::size_t>(n) * step_in);
        std::fill_n(next, static_cast<std::size_t>(n) * step_in, Real(0));
        for (int from = 0; from < layer.skip * layer.n_in; from += layer.n_in)
            for (std::int64_t i = 0; i < n; ++i)
                for (int k = 0; k < layer.n_in; ++k) next[i * step_in + k] += tile.adjoint[i * step + from + k];
        layer.backward.add_product(n, slope, step, 1, next, step_in);
        std::swap(tile.adjoint, tile.next);
    }
    if (axis > 0) std::fill_n(tile.moments_adjoint, static_cast<std::size_t>(n) * n_rows * channels, Real(0));
    const int step = padded<Real>(layers_.front().n_out);
    for (const Chunk& chunk : chunks_) {
        const std::size_t size = static_cast<std::size_t>(n) * padded<Real>(chunk.width);
        Real* inputs = sized(tile.inputs, size);
        std::fill_n(inputs, size, Real(0));
        chunk.backward.add_product(n, tile.slope[0].data(), step, 1, inputs, padded<Real>(chunk.width));
        if (layers_.front().skip)
            chunk.skip_backward.add_product(n, tile.adjoint.data(), step, 1, inputs, padded<Real>(chunk.width));
        gather(tile, chunk, inputs);
    }
}

template <class Real>
void FittingNet<Real>::evaluate(FittingTile<Real>& tile) const {
    forward(tile);
    backward(tile);
}

template class FittingNet<double>;
template class FittingNet<float>;

}  // namespace dphpc
