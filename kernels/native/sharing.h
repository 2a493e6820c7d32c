// Rows of a batch dealt to threads in tiles, and work that several threads share on the same rows.
//
// Few rows do not pay for a thread that reads all weights of a wide layer: pairs of threads then have their two tiles in
// common, and each takes half of the layer's inputs.  What they get is summed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "product.h"

namespace dphpc {

// The chunks of a layer's inputs that one of `count` threads takes: as wide in all as the others'.
struct Share {
    int index = 0, count = 1;

    bool takes(int chunk) const {
        const int round = chunk / count, place = chunk % count;  // later chunks are narrower: every other round backwards
        return index == (round % 2 == 0 ? place : count - 1 - place);
    }

    // Of so many threads, of whom pairs share, where there are any.
    static Share of(int thread, int threads) {
        const int count = threads % 2 == 0 ? 2 : 1;
        return {thread % count, count};
    }
};

struct Tile {
    std::int64_t first = 0;
    int n = 0, index = 0;
};

// A tile, the tiles of all threads that share work on them as one, and the share of the tile's thread.
struct Part {
    Tile tile, group;
    Share share;
};

class Tiling {
  public:
    // As many tiles for every thread, of at most `size` of n rows; threads share while each has one.
    Tiling(std::int64_t n, int threads, int size)
        : n_(n), threads_(threads), n_tiles_(static_cast<int>((n + size * threads - 1) / (size * threads)) * threads) {}

    int n_tiles() const { return n_tiles_; }
    Tile tile(int index) const { return tiles(index, index + 1); }

    // Calls the phases for each tile; where threads share, none begins a phase before all have ended the last.
    template <class... Phases>
    void run(const Phases&... phases) const {
#pragma omp parallel num_threads(threads_)
        {
            const auto each = [&](const auto& phase) {
#pragma omp for schedule(static)
                for (int index = 0; index < n_tiles_; ++index) phase(part(index));
            };
            if (part(0).share.count > 1)
                (each(phases), ...);
            else
                each([&](const Part& part) { (phases(part), ...); });
        }
    }

  private:
    Tile tiles(int index, int last) const {
        const std::int64_t first = n_ * index / n_tiles_;
        return {first, static_cast<int>(n_ * last / n_tiles_ - first), index};
    }

    Part part(int index) const {
        const Share share = n_tiles_ == threads_ ? Share::of(index, threads_) : Share{};
        const int leader = index - share.index;
        return {tile(index), tiles(leader, leader + share.count), share};
    }

    std::int64_t n_;
    int threads_, n_tiles_;
};

// Sums (n, width) over the threads that share rows: the first adds to the result itself, the others to memory of theirs.
template <class Real>
class SharedSum {
  public:
    void prepare(int n_tiles) { others_.resize(n_tiles); }

    // Zeros for the rows of the part's group.
    Real* own(const Part& part, Real* result, std::int64_t width) {
        const std::int64_t size = part.group.n * width;
        Real* rows = part.share.index == 0 ? result + part.group.first * width : sized(others_[part.tile.index], size);
        std::fill_n(rows, size, Real(0));
        return rows;
    }

    // Adds what others have to the rows of the part's own tile.
    void finish(const Part& part, Real* result, std::int64_t width) const {
        const std::int64_t skip = (part.tile.first - part.group.first) * width, size = part.tile.n * width;
        Real* rows = result + part.tile.first * width;
        for (int other = 1; other < part.share.count; ++other) {
            const Real* theirs = others_[part.group.index + other].data() + skip;
            for (std::int64_t k = 0; k < size; ++k) rows[k] += theirs[k];
        }
    }

  private:
    std::vector<std::vector<Real>> others_;  // of each tile
};

}  // namespace dphpc
