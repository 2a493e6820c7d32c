// Division of a batch's atoms among threads in tiles, and of the work on the same atoms among several threads.
//
// If a tile has few atoms, it is not worthwhile that its thread reads all weights of a wide layer: then two threads work
// on their two tiles together, each with half of the layer's inputs, and their results are summed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "product.h"

namespace dphpc {

// The part of a layer's inputs that one of `count` threads takes.
struct Share {
    int index = 0, count = 1;
};

struct Tile {
    std::int64_t first = 0;
    int n = 0, index = 0;
};

// A tile, the union of the tiles of all threads that share their work, and the share of the tile's thread.
struct Part {
    Tile tile, group;
    Share share;
};

class Tiling {
  public:
    // Divides n rows into tiles of about `size` at most, equally many for each thread; threads share work if each has one
    // tile.  Tiles begin at multiples of `unit`, and the rows are padded to a multiple of `pad`.
    Tiling(std::int64_t n, int threads, int size, int unit, int pad)
        : padded_((n + pad - 1) / pad * pad),
          unit_(unit),
          threads_(threads),
          n_tiles_(static_cast<int>((n + size * threads - 1) / (size * threads)) * threads) {}

    std::int64_t padded() const { return padded_; }
    int n_tiles() const { return n_tiles_; }
    Tile tile(int index) const { return tiles(index, index + 1); }

    // Calls the phases for each tile; threads that share work begin a phase when all have finished the previous one.
    template <class... Phases>
    void run(const Phases&... phases) const {
        if (n_tiles_ == 0) return;
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
        const std::int64_t units = (padded_ + unit_ - 1) / unit_;
        const std::int64_t first = units * index / n_tiles_ * unit_;
        return {first, static_cast<int>(std::min(padded_, units * last / n_tiles_ * unit_) - first), index};
    }

    Part part(int index) const {
        const int count = n_tiles_ == threads_ && threads_ % 2 == 0 ? 2 : 1;
        const Share share{index % count, count};
        const int leader = index - share.index;
        return {tile(index), tiles(leader, leader + share.count), share};
    }

    std::int64_t padded_;
    int unit_, threads_, n_tiles_;
};

// Sums (n, width) over the threads that share rows: the first adds to the result itself, the others to own memory.
template <class Real>
class SharedSum {
  public:
    void prepare(int n_tiles) { others_.resize(n_tiles); }

    // The rows of the part's group to which its thread adds, set to zero.
    Real* own(const Part& part, Real* result, std::int64_t width) {
        const std::int64_t size = part.group.n * width;
        Real* rows = part.share.index == 0 ? result + part.group.first * width : sized(others_[part.tile.index], size);
        std::fill_n(rows, size, Real(0));
        return rows;
    }

    // Adds the sums of the other threads to the rows of the part's tile.
    void finish(const Part& part, Real* result, std::int64_t width) const {
        const std::int64_t skip = (part.tile.first - part.group.first) * width, size = part.tile.n * width;
        Real* rows = result + part.tile.first * width;
        for (int other = 1; other < part.share.count; ++other) {
            const Real* theirs = others_[part.group.index + other].data() + skip;
            for (std::int64_t k = 0; k < size; ++k) rows[k] += theirs[k];
        }
    }

  private:
    std::vector<std::vector<Real>> others_;  // memory of each tile's thread
};

}  // namespace dphpc
