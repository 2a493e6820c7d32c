#include "neighbors.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace dphpc {

CellGrid::CellGrid(const double* positions, const std::int32_t* types, const std::int64_t* ids, std::int64_t n_all,
                   double reach)
    : reach_(reach), n_all_(n_all) {
    double high[3] = {0, 0, 0};
    for (int d = 0; d < 3; ++d) low_[d] = n_all > 0 ? positions[d] : 0.0, high[d] = low_[d];
    for (std::int64_t i = 0; i < n_all; ++i)
        for (int d = 0; d < 3; ++d) {
            const double x = positions[3 * i + d];
            if (!std::isfinite(x)) throw std::invalid_argument(std::to_string(i));
            low_[d] = std::min(low_[d], x);
            high[d] = std::max(high[d], x);
        }
    // Cells of half the reach waste little of the searched volume.  A dilute gas in a huge box would need more cells
    // than atoms: then their edges are increased until there are few enough.
    double edge = 0.5 * reach;
    for (;; edge *= 1.25) {
        double n_cells = 1.0;
        for (int d = 0; d < 3; ++d) n_cells *= std::max(1.0, std::floor((high[d] - low_[d]) / edge));
        if (n_cells <= std::min(4.0 * static_cast<double>(n_all) + 64.0, 0x1p31 - 1.0)) break;  // numbers of 32 bits
    }
    for (int d = 0; d < 3; ++d) {
        const double length = high[d] - low_[d];
        shape_[d] = std::max<std::int64_t>(1, static_cast<std::int64_t>(length / edge));
        inverse_edge_[d] = length > 0.0 ? static_cast<double>(shape_[d]) / length : 0.0;
        span_[d] = static_cast<std::int64_t>(std::ceil(reach * inverse_edge_[d]));
    }

    std::vector<std::int32_t> cell_of(n_all);
    start_.assign(shape_[0] * shape_[1] * shape_[2] + 1, 0);
    for (std::int64_t i = 0; i < n_all; ++i) {
        std::int64_t c[3];
        for (int d = 0; d < 3; ++d) {
            const auto k = static_cast<std::int64_t>((positions[3 * i + d] - low_[d]) * inverse_edge_[d]);
            c[d] = std::min(k, shape_[d] - 1);
        }
        const std::int64_t cell = (c[2] * shape_[1] + c[1]) * shape_[0] + c[0];
        cell_of[i] = static_cast<std::int32_t>(cell);
        ++start_[cell + 1];
    }
    for (std::size_t c = 1; c < start_.size(); ++c) start_[c] += start_[c - 1];
    atom_.resize(n_all), rank_.resize(n_all), by_rank_.resize(n_all);
    x_.resize(n_all), y_.resize(n_all), z_.resize(n_all);
    std::vector<std::int64_t> next(start_.begin(), start_.end() - 1);
    for (std::int64_t i = 0; i < n_all; ++i) {
        const std::int64_t slot = next[cell_of[i]]++;
        atom_[slot] = static_cast<std::int32_t>(i);
        x_[slot] = positions[3 * i], y_[slot] = positions[3 * i + 1], z_[slot] = positions[3 * i + 2];
    }
    rank(positions, types, ids);
}

// Ranks the atoms, so that rows can be sorted as 32-bit integers.  The images of an atom differ by box vectors, so the
// order of their positions does not depend on where the atom is.
void CellGrid::rank(const double* positions, const std::int32_t* types, const std::int64_t* ids) {
    struct Key {
        std::int64_t id;
        std::int32_t type, atom;
    };
    std::vector<Key> keys(n_all_);
    for (std::int64_t i = 0; i < n_all_; ++i) keys[i] = {ids[i], types[i], static_cast<std::int32_t>(i)};
    std::sort(keys.begin(), keys.end(), [positions](const Key& a, const Key& b) {
        if (a.type != b.type) return a.type < b.type;
        if (a.id != b.id) return a.id < b.id;
        const double *x = positions + 3 * std::int64_t{a.atom}, *y = positions + 3 * std::int64_t{b.atom};
        return std::lexicographical_compare(x, x + 3, y, y + 3);
    });
    std::vector<std::int32_t> rank_of(n_all_);
    for (std::int64_t r = 0; r < n_all_; ++r) {
        by_rank_[r] = keys[r].atom;
        rank_of[by_rank_[r]] = static_cast<std::int32_t>(r);
    }
    for (std::int64_t slot = 0; slot < n_all_; ++slot) rank_[slot] = rank_of[atom_[slot]];
}

// Calls visit(first slot, end of slots) for each row of cells along x around a slot's atom.
template <class Visit>
void CellGrid::for_candidates(std::int64_t slot, Visit&& visit) const {
    const double p[3] = {x_[slot], y_[slot], z_[slot]};
    std::int64_t from[3], to[3];
    for (int d = 0; d < 3; ++d) {
        const auto k = std::min(static_cast<std::int64_t>((p[d] - low_[d]) * inverse_edge_[d]), shape_[d] - 1);
        from[d] = std::max<std::int64_t>(k - span_[d], 0);
        to[d] = std::min(k + span_[d], shape_[d] - 1);
    }
    for (std::int64_t cz = from[2]; cz <= to[2]; ++cz)
        for (std::int64_t cy = from[1]; cy <= to[1]; ++cy) {
            const std::int64_t row = (cz * shape_[1] + cy) * shape_[0];
            visit(start_[row + from[0]], start_[row + to[0] + 1]);
        }
}

// Calls row(slot, atom) for every local atom.  Slots are in the order of cells, so that a thread stays in one region.
template <class Row>
void CellGrid::for_rows(std::int64_t n_local, [[maybe_unused]] int threads, Row&& row) const {
#pragma omp parallel for schedule(dynamic, 256) num_threads(threads)
    for (std::int64_t slot = 0; slot < n_all_; ++slot)
        if (atom_[slot] < n_local) row(slot, atom_[slot]);
}

void CellGrid::count(std::int64_t n_local, int threads, std::int64_t* offsets) const {
    const double limit = reach_ * reach_;
    offsets[0] = 0;
    for_rows(n_local, threads, [&](std::int64_t slot, std::int32_t i) {
        const double xi = x_[slot], yi = y_[slot], zi = z_[slot];
        std::int64_t n = -1;  // the atom itself is among the candidates
        for_candidates(slot, [&](std::int64_t first, std::int64_t last) {
            std::int64_t near = 0;
#pragma omp simd reduction(+ : near)
            for (std::int64_t k = first; k < last; ++k) {
                const double dx = x_[k] - xi, dy = y_[k] - yi, dz = z_[k] - zi;
                near += dx * dx + dy * dy + dz * dz < limit;
            }
            n += near;
        });
        offsets[i + 1] = n;
    });
    for (std::int64_t i = 0; i < n_local; ++i) offsets[i + 1] += offsets[i];
}

namespace {

// Sorts n distinct ranks into `sorted`.  The index of each is the number of smaller ones: n² comparisons, but
// vectorized and without branches, faster than std::sort for up to a thousand.  `ranks` has room for `lanes` more.
constexpr std::int32_t lanes = 64;

void sort_row(std::int32_t* ranks, std::int32_t n, std::int32_t* sorted) {
    if (n > 1000) {
        std::copy(ranks, ranks + n, sorted);
        std::sort(sorted, sorted + n);
        return;
    }
    std::fill(ranks + n, ranks + n + lanes, 0);
    for (std::int32_t i = 0; i < n; i += lanes) {
        std::int32_t mine[lanes], place[lanes] = {};
        for (std::int32_t l = 0; l < lanes; ++l) mine[l] = ranks[i + l];
        for (std::int32_t k = 0; k < n; ++k) {
            const std::int32_t other = ranks[k];
#pragma omp simd
            for (std::int32_t l = 0; l < lanes; ++l) place[l] += other < mine[l];
        }
        for (std::int32_t l = 0; l < std::min(lanes, n - i); ++l) sorted[place[l]] = mine[l];
    }
}

}  // namespace

void CellGrid::fill(std::int64_t n_local, int threads, const std::int64_t* offsets, std::int32_t* indices) const {
    const double limit = reach_ * reach_;
    for_rows(n_local, threads, [&](std::int64_t slot, std::int32_t i) {
        thread_local std::vector<std::int32_t> buffer;
        const double xi = x_[slot], yi = y_[slot], zi = z_[slot];
        buffer.resize(offsets[i + 1] - offsets[i] + lanes + 1);
        std::int32_t* next = buffer.data();
        for_candidates(slot, [&](std::int64_t first, std::int64_t last) {
            std::int32_t* end = next;
            for (std::int64_t k = first; k < last; ++k) {
                const double dx = x_[k] - xi, dy = y_[k] - yi, dz = z_[k] - zi;
                // Written before it is known to be near: a branch would be mispredicted every fourth time.
                *end = rank_[k];
                end += (dx * dx + dy * dy + dz * dz < limit) & (k != slot);
            }
            next = end;
        });
        std::int32_t* row = indices + offsets[i];
        const auto n = static_cast<std::int32_t>(next - buffer.data());
        sort_row(buffer.data(), n, row);
        for (std::int32_t k = 0; k < n; ++k) row[k] = by_rank_[row[k]];
    });
}

}  // namespace dphpc
