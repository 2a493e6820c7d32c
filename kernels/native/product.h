// Matrix products whose right factor is packed once and used many times, such as the weights of a fitting net.
//
// An element of the result is summed over the depth in increasing order, by the same instructions whatever its row, so
// that the bits of a row depend neither on the other rows nor on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vec.h"

namespace dphpc {

// A buffer's memory, enlarged to at least n values and kept from one use to the next.
template <class Real>
Real* sized(std::vector<Real>& buffer, std::size_t n) {
    if (buffer.size() < n) buffer.resize(n);
    return buffer.data();
}

// The block of the result that the kernel computes: `rows` × 3 vectors, whose sums stay in registers.
template <class Real>
struct ProductBlock {
    static constexpr int lanes = vector_lanes<Real>, vectors = 3, columns = lanes * vectors;
    static constexpr int rows = vector_registers >= 32 ? 8 : 4;
    // A panel of this depth stays in the first-level cache, together with the rows that it is multiplied by.
    static constexpr int depth = 16384 / (columns * static_cast<int>(sizeof(Real)));
};

// n rounded up to a multiple of a block's columns: the row length of all arrays here.
template <class Real>
constexpr int padded(int n) {
    constexpr int columns = ProductBlock<Real>::columns;
    return (n + columns - 1) / columns * columns;
}

// c (R, V vectors) += a (R, depth) · panel.  Element (i, k) of a is a[i·row_step + k·depth_step].
template <int R, int V, class Real>
inline void add_block(const Real* a, std::int64_t row_step, std::int64_t depth_step, const Real* panel, int depth,
                      Real* c, std::int64_t c_step) {
    constexpr int lanes = vector_lanes<Real>;
    Vec<Real, lanes> sum[R][V];
    for (int i = 0; i < R; ++i)
        for (int v = 0; v < V; ++v) sum[i][v] = load<Real, lanes>(c + i * c_step + v * lanes);
#pragma GCC unroll 2
    for (int k = 0; k < depth; ++k, panel += V * lanes, a += depth_step) {
        Vec<Real, lanes> right[V];
        for (int v = 0; v < V; ++v) right[v] = load<Real, lanes>(panel + v * lanes);
        for (int i = 0; i < R; ++i) {
            const Real left = a[i * row_step];
            for (int v = 0; v < V; ++v) sum[i][v] += left * right[v];
        }
    }
    for (int i = 0; i < R; ++i)
        for (int v = 0; v < V; ++v) store<Real, lanes>(c + i * c_step + v * lanes, sum[i][v]);
}

template <int R, int V, class Real>
inline void add_last_rows(int rows, const Real* a, std::int64_t row_step, std::int64_t depth_step, const Real* panel,
                          int depth, Real* c, std::int64_t c_step) {
    if constexpr (R > 0) {
        if (rows == R) return add_block<R, V>(a, row_step, depth_step, panel, depth, c, c_step);
        add_last_rows<R - 1, V>(rows, a, row_step, depth_step, panel, depth, c, c_step);
    }
}

template <class Real>
class PackedMatrix {
  public:
    int depth = 0, width = 0;  // rows and columns

    // Packs a matrix with elements (k, j) = row(k)(j).
    template <class Row>
    void pack_rows(int depth_, int width_, Row&& row) {
        resize(depth_, width_);
        for_panels(panels_.data(), [&](Real* panel, int first, int part, int column, int n) {
            for (int k = 0; k < part; ++k) {
                const auto element = row(first + k);
                for (int j = 0; j < n; ++j) panel[k * columns + j] = element(column + j);
            }
        });
    }

    // Packs a matrix with elements (k, j) = column(j)(k).
    template <class Column>
    void pack_columns(int depth_, int width_, Column&& column) {
        resize(depth_, width_);
        for_panels(panels_.data(), [&](Real* panel, int first, int part, int from, int n) {
            for (int j = 0; j < n; ++j) {
                const auto element = column(from + j);
                for (int k = 0; k < part; ++k) panel[k * columns + j] = element(first + k);
            }
        });
    }

    // c (rows, padded width) += a (rows, depth) · this; only for the columns of c from `from` on, where a panel begins.
    void add_product(int rows, const Real* a, std::int64_t row_step, std::int64_t depth_step, Real* c,
                     std::int64_t c_step, int from = 0) const {
        using B = ProductBlock<Real>;
        for_panels(panels_.data(), [&](const Real* panel, int first, int part, int column, int) {
            if (column < from) return;
            const Real* left = a + first * depth_step;
            Real* out = c + column;
            // The next panel is not in the cache yet: a slice of it is prefetched with every block of rows.
            const Real* next = panel + static_cast<std::size_t>(part) * columns;
            const int slice = part * columns * B::rows / std::max(rows, 1);
            int i = 0;
            for (; i + B::rows <= rows; i += B::rows, next += slice) {
                for (int l = 0; l < slice; l += 64 / static_cast<int>(sizeof(Real))) __builtin_prefetch(next + l, 0, 2);
                add_block<B::rows, B::vectors>(left + i * row_step, row_step, depth_step, panel, part, out + i * c_step, c_step);
            }
            add_last_rows<B::rows - 1, B::vectors>(rows - i, left + i * row_step, row_step, depth_step, panel, part,
                                                   out + i * c_step, c_step);
        });
    }

  private:
    static constexpr int columns = ProductBlock<Real>::columns;

    void resize(int depth_, int width_) {
        depth = depth_, width = width_;
        panels_.resize(static_cast<std::size_t>(depth) * padded<Real>(width));  // padding is not used
    }

    // Calls work(panel, first row, number of rows, first column, number of columns) for all panels in order of memory.
    template <class Pointer, class Work>
    void for_panels(Pointer panel, Work&& work) const {
        for (int first = 0; first < depth; first += ProductBlock<Real>::depth) {
            const int part = std::min(ProductBlock<Real>::depth, depth - first);
            for (int column = 0; column < width; column += columns, panel += static_cast<std::size_t>(part) * columns)
                work(panel, first, part, column, std::min(columns, width - column));
        }
    }

    std::vector<Real> panels_;  // parts of the depth in order, each (width / columns, part, columns)
};

}  // namespace dphpc
