// Full neighbor lists, built with cells over the bounding box of all atoms, ghosts included.
#pragma once

#include <cstdint>
#include <vector>

namespace dphpc {

// Atoms sorted into a grid of cells.  The cells of a row along x are contiguous, and so are their atoms.
class CellGrid {
  public:
    // Throws std::invalid_argument, whose message is the index of the atom, if a position is not finite.
    CellGrid(const double* positions, const std::int32_t* types, const std::int64_t* ids, std::int64_t n_all,
             double reach);

    // Sets the offsets (n_local + 1) of the rows of the list.
    void count(std::int64_t n_local, int threads, std::int64_t* offsets) const;

    // Sets the rows of the list, each sorted by (type, id, position), whatever the order of the atoms in memory.
    void fill(std::int64_t n_local, int threads, const std::int64_t* offsets, std::int32_t* indices) const;

  private:
    void rank(const double* positions, const std::int32_t* types, const std::int64_t* ids);
    template <class Visit>
    void for_candidates(std::int64_t slot, Visit&& visit) const;
    template <class Row>
    void for_rows(std::int64_t n_local, int threads, Row&& row) const;

    double reach_;
    std::int64_t n_all_;
    std::int64_t shape_[3];
    std::int64_t span_[3];                       // number of cells to search on each side
    double low_[3], inverse_edge_[3];
    std::vector<std::int64_t> start_;            // (n_cells + 1) first slot of each cell
    std::vector<std::int32_t> atom_;             // (n_all) atom in each slot
    std::vector<std::int32_t> rank_;             // (n_all) rank of that atom in the order (type, id, position)
    std::vector<std::int32_t> by_rank_;          // (n_all) atom of each rank
    std::vector<double> x_, y_, z_;              // (n_all) position of the atom in each slot
};

}  // namespace dphpc
