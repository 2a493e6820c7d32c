#include "tape_inputs.h"

#include <algorithm>

namespace dphpc {

template <class Real>
TapeInputs<Real>::TapeInputs(const LayerView<Real>& first_layer, int channels_, int axis_)
    : channels(channels_),
      axis(axis_),
      n_columns(first_layer.n_in - channels_ * axis_),
      layer_(first_layer),
      n_features_(start(channels_)) {
    folded_.resize(static_cast<std::size_t>(start(axis)) * layer_.n_out);
    fold();
}

template <class Real>
void TapeInputs<Real>::fold() {
    const int n = layer_.n_out;
    const auto row = [&](int i) { return layer_.w + static_cast<std::size_t>(i) * n; };
    Real* out = folded_.data();
    for (int m = 0; m < axis; ++m)
        for (int k = 0; k <= m; ++k, out += n) {
            std::copy_n(row(m * axis + k), n, out);
            if (k < m)
                for (int j = 0; j < n; ++j) out[j] += row(k * axis + m)[j];
        }
}

template <class Real>
int TapeInputs<Real>::start(int m) const {
    const int folded = std::min(m, axis);
    return folded * (folded + 1) / 2 + (m - folded) * axis;
}

template <class Real>
std::vector<InputPiece> TapeInputs<Real>::pieces(const Share& share, int width) const {
    const auto cut = [&](int index) {  // the first channel of a share's features
        const int before = n_inputs() * index / share.count;
        int m = 0;
        while (m < channels && start(m) < before) ++m;
        return m;
    };
    std::vector<InputPiece> result;
    const int step = std::max(1, width / std::max(1, axis)), last = cut(share.index + 1);
    for (int m = cut(share.index); m < last;) {
        const int end = std::min({last, m + step, m < axis ? axis : last});
        result.push_back({m, end, start(end) - start(m), start(m), true});
        m = end;
    }
    for (int k = 0; share.index + 1 == share.count && k < n_columns; k += width) {
        const int end = std::min(n_columns, k + width);
        result.push_back({k, end, end - k, n_features_ + k, false});
    }
    return result;
}

template <class Real>
const Real* TapeInputs<Real>::weights(const InputPiece& piece) const {
    if (!is_plain(piece)) return folded_.data() + static_cast<std::size_t>(piece.start) * layer_.n_out;
    return layer_.w + static_cast<std::size_t>(first_row(piece)) * layer_.n_out;
}

template <class Real>
int TapeInputs<Real>::first_row(const InputPiece& piece) const {
    return piece.is_features ? piece.first * axis : channels * axis + piece.first;
}

template <class Real>
void TapeInputs<Real>::fill(const InputPiece& piece, const Tile& tile, const Real* moments, const Real* columns,
                            Real* inputs, int row_step) const {
    if (piece.is_features)
        return set_features(piece, tile, inputs, row_step, [&](std::int64_t panel, int row) {
            const Real *a = moments + panel, *b = a + row, *c = b + row, *d = c + row;
            return [=](int one, int two) { return a[one] * a[two] + b[one] * b[two] + c[one] * c[two] + d[one] * d[two]; };
        });
    for_panels<Real>(tile, [&](std::int64_t first, auto n) {
        const Real* column = columns + first * n_columns + piece.first * n;
        Real* out = inputs + first * (row_step ? 1 : piece.width);
        for (int i = 0; i < piece.width; ++i, out += row_step ? row_step : n, column += n)
            std::copy_n(column, static_cast<int>(n), out);
    });
}

template <class Real>
void TapeInputs<Real>::fill_tangent(const InputPiece& piece, const Tile& tile, const Real* moments, const Real* tangent,
                                    Real* inputs, int row_step) const {
    set_features(piece, tile, inputs, row_step, [&](std::int64_t panel, int row) {
        return [a = moments + panel, a_dot = tangent + panel, row](int one, int two) {
            Real sum = a_dot[one] * a[two] + a[one] * a_dot[two];
            for (int r = 1; r < n_rows; ++r)
                sum += a_dot[r * row + one] * a[r * row + two] + a[r * row + one] * a_dot[r * row + two];
            return sum;
        };
    });
}

// Sets the features of a piece.  For a panel whose moments begin at `panel` and have rows of `row` numbers,
// of_panel(panel, row) returns the function that makes the feature of two moments, given by their places in the first row.
template <class Real>
template <class OfPanel>
void TapeInputs<Real>::set_features(const InputPiece& piece, const Tile& tile, Real* inputs, int row_step,
                                    OfPanel&& of_panel) const {
    for_panels<Real>(tile, [&](std::int64_t first, auto n) {
        const int step = row_step ? row_step : n;
        Real* out = inputs + first * (row_step ? 1 : piece.width);
        const auto feature = of_panel(first * n_rows * channels, channels * n);
        for (int m = piece.first; m < piece.last; ++m)
            for (int k = 0; k < features_of(m); ++k, out += step) {
#pragma omp simd
                for (int j = 0; j < n; ++j) out[j] = feature(m * n + j, k * n + j);
            }
    });
}

template <class Real>
void TapeInputs<Real>::gather(const InputPiece& piece, const Tile& tile, const Real* moments, const Real* y,
                              Real* moments_adjoint) const {
    constexpr int lanes = vector_lanes<Real>;
    for_panels<Real>(tile, [&](std::int64_t first, auto n) {
        const std::int64_t at = first * n_rows * channels, row = channels * n;
        for (int j = 0; j < n; j += lanes) {
            const Real *a = moments + at + j, *bar = y + first * piece.width + j;
            Real* a_bar = moments_adjoint + at + j;
            for (int m = piece.first; m < piece.last; ++m) {
                Vec<Real, lanes> of_m[n_rows], sum[n_rows] = {};  // the four chains of sums hide each other's latency
                for (int r = 0; r < n_rows; ++r) of_m[r] = load<Real, lanes>(a + r * row + m * n);
                for (int k = 0; k < features_of(m); ++k, bar += n) {
                    const Vec<Real, lanes> of_feature = load<Real, lanes>(bar);
                    for (int r = 0; r < n_rows; ++r) {
                        const std::int64_t place = r * row + k * n;
                        sum[r] += of_feature * load<Real, lanes>(a + place);
                        store<Real, lanes>(a_bar + place, load<Real, lanes>(a_bar + place) + of_feature * of_m[r]);
                    }
                }
                for (int r = 0; r < n_rows; ++r) {
                    Real* out = a_bar + r * row + m * n;
                    store<Real, lanes>(out, load<Real, lanes>(out) + sum[r]);
                }
            }
        }
    });
}

// Calls work(input, copy, n) for the rows of n atoms of a piece's inputs and of each of their copies: where they begin.
template <class Real>
template <class Work>
void TapeInputs<Real>::for_copies(const InputPiece& piece, const Tile& tile, Work&& work) const {
    for_panels<Real>(tile, [&](std::int64_t first, auto n) {
        for_rows(piece, [&](int i, int row) {
            for (int copy = 0; copy < layer_.skip; ++copy)
                work(first * piece.width + i * n, first * layer_.n_out + (copy * layer_.n_in + row) * n, n);
        });
    });
}

template <class Real>
void TapeInputs<Real>::add_copies(const InputPiece& piece, const Tile& tile, const Real* inputs, Real* copies) const {
    for_copies(piece, tile, [&](std::int64_t input, std::int64_t copy, auto n) {
        for (int j = 0; j < n; ++j) copies[copy + j] += inputs[input + j];
    });
}

template <class Real>
void TapeInputs<Real>::add_copies_adjoint(const InputPiece& piece, const Tile& tile, const Real* copies,
                                          Real* inputs) const {
    for_copies(piece, tile, [&](std::int64_t input, std::int64_t copy, auto n) {
        for (int j = 0; j < n; ++j) inputs[input + j] += copies[copy + j];
    });
}

template class TapeInputs<double>;
template class TapeInputs<float>;

}  // namespace dphpc
