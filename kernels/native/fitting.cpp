#include "fitting.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace dphpc {
namespace {

constexpr int chunk_width = 400;  // approximate number of inputs that are formed at a time

// Replaces z in `value` by act(z)·idt, and sets slope = act′(z)·idt.
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
PackedNet<Real>::PackedNet(const std::vector<LayerView<Real>>& views, int channels_, int axis_)
    : channels(channels_), axis(axis_), n_columns(views.front().n_in - channels_ * axis_) {
    for (const LayerView<Real>& view : views)
        layers.push_back({view.n_in, view.n_out, view.skip, view.activation, {}, {}, {}, {}});
    for (int k = 0; k < axis; ++k)
        for (int m = k; m < channels; ++m) first_index_.push_back(k), second_index_.push_back(m);
    const int step = std::max(1, chunk_width / std::max(1, channels));
    for (int k = 0; k < axis; k += step) {
        const int last = std::min(axis, k + step);
        chunks.push_back({k, last, n_features(k, last), n_features(0, k), true, {}, {}, {}, {}});
    }
    for (int k = 0; k < n_columns; k += chunk_width) {
        const int last = std::min(n_columns, k + chunk_width);
        chunks.push_back({k, last, last - k, 0, false, {}, {}, {}, {}});
    }
    for (Chunk<Real>& chunk : chunks) pack_chunk(views.front(), chunk);
    for (std::size_t l = 0; l < layers.size(); ++l) {
        take_vectors(views[l], layers[l]);
        if (l > 0) pack_weights(views[l], layers[l]);
    }
}

template <class Real>
int PackedNet<Real>::n_features(int first, int last) const {
    return (last - first) * channels - (last * (last - 1) - first * (first - 1)) / 2;
}

template <class Real>
typename PackedNet<Real>::Rows PackedNet<Real>::rows_of(const Chunk<Real>& chunk, int i) const {
    if (!chunk.is_features) return {channels * axis + chunk.first + i, -1};
    const int k = first_index_[chunk.start + i], m = second_index_[chunk.start + i];
    return {m * axis + k, m < axis && m > k ? k * axis + m : -1};
}

template <class Real>
void PackedNet<Real>::pack_chunk(const LayerView<Real>& layer, Chunk<Real>& chunk) const {
    const auto row = [&](int i) {
        const Rows rows = rows_of(chunk, i);
        const Real* one = layer.w + static_cast<std::size_t>(rows.one) * layer.n_out;
        const Real* other = layer.w + static_cast<std::size_t>(std::max(rows.other, 0)) * layer.n_out;
        return [one, other, both = rows.other >= 0](int j) { return both ? one[j] + other[j] : one[j]; };
    };
    chunk.forward.pack_rows(chunk.width, layer.n_out, row);
    chunk.backward.pack_columns(layer.n_out, chunk.width, row);
    if (!layer.skip) return;
    const auto copies = [&](int i) {
        return [rows = rows_of(chunk, i), n_in = layer.n_in](int j) {
            return static_cast<Real>((j % n_in == rows.one) + (j % n_in == rows.other));
        };
    };
    chunk.skip_forward.pack_rows(chunk.width, layer.n_out, copies);
    chunk.skip_backward.pack_columns(layer.n_out, chunk.width, copies);
}

template <class Real>
void PackedNet<Real>::fill(const Chunk<Real>& chunk, const NetInputs<Real>& x, std::int64_t from, int n,
                           Real* inputs) const {
    for (std::int64_t i = from; i < from + n; ++i, inputs += padded<Real>(chunk.width)) {
        if (!chunk.is_features) {
            std::copy_n(x.columns + i * n_columns + chunk.first, chunk.width, inputs);
            continue;
        }
        const Real* a = x.moments + i * n_rows * channels;
        const Real *b = a + channels, *c = b + channels, *d = c + channels;
        Real* out = inputs;
        for (int k = chunk.first; k < chunk.last; ++k) {
            const Real ak = a[k], bk = b[k], ck = c[k], dk = d[k];
#pragma omp simd
            for (int m = k; m < channels; ++m) out[m - k] = ak * a[m] + bk * b[m] + ck * c[m] + dk * d[m];
            out += channels - k;
        }
    }
}

template <class Real>
void PackedNet<Real>::gather(const Chunk<Real>& chunk, const Real* moments, const Real* y, std::int64_t from, int n,
                             Real* moments_adjoint) const {
    for (std::int64_t i = from; i < from + n; ++i, y += padded<Real>(chunk.width)) {
        const Real* a = moments + i * n_rows * channels;
        const Real *b = a + channels, *c = b + channels, *d = c + channels;
        Real* a_bar = moments_adjoint + i * n_rows * channels;
        Real *b_bar = a_bar + channels, *c_bar = b_bar + channels, *d_bar = c_bar + channels;
        const Real* at = y;
        for (int k = chunk.first; k < chunk.last; ++k) {
            const Real ak = a[k], bk = b[k], ck = c[k], dk = d[k];
            Real a_sum = 0, b_sum = 0, c_sum = 0, d_sum = 0;
#pragma omp simd reduction(+ : a_sum, b_sum, c_sum, d_sum)
            for (int m = k; m < channels; ++m) {
                const Real bar = at[m - k];
                a_sum += bar * a[m], b_sum += bar * b[m], c_sum += bar * c[m], d_sum += bar * d[m];
                a_bar[m] += bar * ak, b_bar[m] += bar * bk, c_bar[m] += bar * ck, d_bar[m] += bar * dk;
            }
            a_bar[k] += a_sum, b_bar[k] += b_sum, c_bar[k] += c_sum, d_bar[k] += d_sum;
            at += channels - k;
        }
    }
}

namespace {

template <class Real>
void forward(const PackedNet<Real>& net, FittingTile<Real>& tile) {
    const std::int64_t n = tile.n;
    tile.value.resize(net.layers.size()), tile.slope.resize(net.layers.size());
    for (std::size_t l = 0; l < net.layers.size(); ++l) {
        const PackedLayer<Real>& layer = net.layers[l];
        const int step = layer.step();
        Real *value = sized(tile.value[l], n * step), *slope = sized(tile.slope[l], n * step), *skipped = nullptr;
        for (std::int64_t i = 0; i < n; ++i) std::copy(layer.bias.begin(), layer.bias.end(), value + i * step);
        if (l > 0) {
            layer.forward.add_product(tile.n, tile.value[l - 1].data(), layer.step_in(), 1, value, step);
        } else {
            if (layer.skip) {
                skipped = sized(tile.next, n * step);
                std::fill_n(skipped, n * step, Real(0));
            }
            for (const Chunk<Real>& chunk : net.chunks) {
                const int width = padded<Real>(chunk.width);
                Real* inputs = sized(tile.chunk, n * width);
                net.fill(chunk, tile.inputs, 0, tile.n, inputs);
                chunk.forward.add_product(tile.n, inputs, width, 1, value, step);
                if (skipped) chunk.skip_forward.add_product(tile.n, inputs, width, 1, skipped, step);
            }
        }
        std::visit(
            [&](const auto& function) {
                for (std::int64_t i = 0; i < n; ++i)
                    activate_row(function, layer.n_out, layer.idt.empty() ? nullptr : layer.idt.data(),
                                 value + i * step, slope + i * step);
            },
            layer.activation);
        if (l > 0)
            add_copies(layer, n, tile.value[l - 1].data(), value);
        else if (skipped)
            for (std::int64_t i = 0; i < n * step; ++i) value[i] += skipped[i];
    }
}

template <class Real>
void backward(const PackedNet<Real>& net, FittingTile<Real>& tile) {
    const std::int64_t n = tile.n;
    const int last = net.layers.back().step();
    std::fill_n(sized(tile.adjoint, n * last), n * last, Real(1));
    for (std::size_t l = net.layers.size(); l-- > 0;) {
        const PackedLayer<Real>& layer = net.layers[l];
        const int step = layer.step();
        Real* slope = tile.slope[l].data();  // becomes the adjoint of z
        for (std::int64_t i = 0; i < n; ++i)
            for (int k = 0; k < layer.n_out; ++k) slope[i * step + k] *= tile.adjoint[i * step + k];
        if (l == 0) break;
        Real* next = sized(tile.next, n * layer.step_in());
        set_copies_adjoint(layer, n, tile.adjoint.data(), next);
        layer.backward.add_product(tile.n, slope, step, 1, next, layer.step_in());
        std::swap(tile.adjoint, tile.next);
    }
    if (net.axis > 0) std::fill_n(tile.moments_adjoint, n * n_rows * net.channels, Real(0));
    const PackedLayer<Real>& first = net.layers.front();
    for (const Chunk<Real>& chunk : net.chunks) {
        const int width = padded<Real>(chunk.width);
        Real* inputs = sized(tile.chunk, n * width);
        std::fill_n(inputs, n * width, Real(0));
        chunk.backward.add_product(tile.n, tile.slope[0].data(), first.step(), 1, inputs, width);
        if (first.skip) chunk.skip_backward.add_product(tile.n, tile.adjoint.data(), first.step(), 1, inputs, width);
        if (chunk.is_features)
            net.gather(chunk, tile.inputs.moments, inputs, 0, tile.n, tile.moments_adjoint);
        else if (tile.columns_adjoint)
            for (std::int64_t i = 0; i < n; ++i)
                std::copy_n(inputs + i * width, chunk.width, tile.columns_adjoint + i * net.n_columns + chunk.first);
    }
}

}  // namespace

template <class Real>
void evaluate(const PackedNet<Real>& net, FittingTile<Real>& tile) {
    forward(net, tile);
    backward(net, tile);
}

#define DPHPC_INSTANTIATE(Real)   \
    template class PackedNet<Real>; \
    template void evaluate(const PackedNet<Real>&, FittingTile<Real>&);
DPHPC_INSTANTIATE(double)
DPHPC_INSTANTIATE(float)

}  // namespace dphpc
