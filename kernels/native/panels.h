// Arrays with atoms side by side, and matrix products whose left factor, a net's weights, is read where it stands.
//
// An array has some rows for each atom and is stored in panels of a few atoms: row r of the atoms first … first + n − 1
// of a panel is at first·rows + r·n.  The atoms are padded to a multiple of a vector's lanes; only the last panel may be
// narrower than the others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "product.h"
#include "sharing.h"

namespace dphpc {

// The block of the result that the kernel computes: `rows` × 2 vectors, whose sums stay in registers.
template <class Real>
struct PanelBlock {
    static constexpr int lanes = vector_lanes<Real>, vectors = 2, columns = lanes * vectors;
    static constexpr int rows = vector_registers >= 32 ? 12 : 6;
    // Rows of a panel that stay in the first-level cache.  If the left factor's elements along the depth are not side by
    // side, each takes a line of the cache that serves several blocks of rows: then it is half as many.
    static constexpr int depth = 16384 / (columns * static_cast<int>(sizeof(Real)));
};

template <class Real>
Tiling panel_tiling(std::int64_t n, int threads, int size) {
    return {n, threads, size, PanelBlock<Real>::columns, PanelBlock<Real>::lanes};
}

// The panels of `rows` rows of a tile.
template <class Real>
Real* at(std::vector<Real>& panels, const Tile& tile, int rows) {
    return panels.data() + tile.first * rows;
}

// Calls work(first, columns) for the panels of a tile, counted from its first atom; `columns` is a compile-time constant.
template <class Real, class Work>
inline void for_panels(const Tile& tile, Work&& work) {
    using B = PanelBlock<Real>;
    std::int64_t first = 0;
    for (; first + B::columns <= tile.n; first += B::columns) work(first, std::integral_constant<int, B::columns>{});
    if (first < tile.n) work(first, std::integral_constant<int, B::lanes>{});
}

// Calls work(r, at, columns) for the rows of all panels of a tile; row r begins at `at`, counted from the tile's first.
template <class Real, class Work>
inline void for_panel_rows(const Tile& tile, int rows, Work&& work) {
    for_panels<Real>(tile, [&](std::int64_t first, auto columns) {
        for (int r = 0; r < rows; ++r) work(r, first * rows + r * columns, columns);
    });
}

// Sets panels (rows) of a tile from x (n, rows); atoms from n on are zero.
template <class Real>
void set_panels(const Tile& tile, std::int64_t n, int rows, const Real* x, Real* panels) {
    for_panels<Real>(tile, [&](std::int64_t first, auto columns) {
        Real* panel = panels + first * rows;
        for (int j = 0; j < columns; ++j) {
            const std::int64_t atom = tile.first + first + j;
            for (int r = 0; r < rows; ++r) panel[r * columns + j] = atom < n ? x[atom * rows + r] : Real(0);
        }
    });
}

// Sets rows of x (n, rows) from the panels of a tile.
template <class Real>
void get_panels(const Tile& tile, std::int64_t n, int rows, const Real* panels, Real* x) {
    for_panels<Real>(tile, [&](std::int64_t first, auto columns) {
        const Real* panel = panels + first * rows;
        for (std::int64_t atom = tile.first + first; atom < std::min(n, tile.first + first + columns); ++atom)
            for (int r = 0; r < rows; ++r) x[atom * rows + r] = panel[r * columns + atom - tile.first - first];
    });
}

// The left factor of a product: element (i, k) is at[i·row_step + k·depth_step].
template <class Real>
struct LeftMatrix {
    const Real* at;
    int rows, depth;
    std::int64_t row_step, depth_step;

    // w (n_in, n_out), and its transpose.
    static LeftMatrix of(const Real* w, int n_in, int n_out) { return {w, n_in, n_out, n_out, 1}; }
    static LeftMatrix transposed(const Real* w, int n_in, int n_out) { return {w, n_out, n_in, 1, n_out}; }
};

// y (rows) += left · x (depth) for the panels of a tile, which begin at y and x.
template <class Real>
void add_panel_product(const Tile& tile, const LeftMatrix<Real>& left, const Real* x, Real* y) {
    using B = PanelBlock<Real>;
    const bool transposed = left.depth_step != 1;
    const int most = transposed ? B::depth / 2 : B::depth;
    for (int k = 0; k < left.depth; k += most) {
        const int depth = std::min(most, left.depth - k);
        const Real* a = left.at + k * left.depth_step;
        // With the first panel the next rows of the weights, which follow in memory, are prefetched slice by slice.
        const Real* next = a + depth * left.depth_step;
        const std::int64_t n_next = transposed ? std::min(depth, left.depth - k - depth) * left.depth_step : 0;
        for_panels<Real>(tile, [&](std::int64_t first, auto columns) {
            constexpr int vectors = columns / B::lanes;
            const Real* panel = x + first * left.depth + k * columns;
            Real* out = y + first * left.rows;
            int i = 0;
            for (; i + B::rows <= left.rows; i += B::rows) {
                if (first == 0)
                    for (std::int64_t l = n_next * i / left.rows; l < n_next * (i + B::rows) / left.rows;
                         l += 64 / static_cast<int>(sizeof(Real)))
                        __builtin_prefetch(next + l, 0, 2);
                add_block<B::rows, vectors>(a + i * left.row_step, left.row_step, left.depth_step, panel, depth,
                                            out + i * columns, columns);
            }
            add_last_rows<B::rows - 1, vectors>(left.rows - i, a + i * left.row_step, left.row_step, left.depth_step,
                                                panel, depth, out + i * columns, columns);
        });
    }
}

}  // namespace dphpc
