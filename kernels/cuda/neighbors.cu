// Full neighbor lists by cells; the same lists as those of kernels/native/neighbors.cpp.
//
// Defined in front of this text: WARP, BLOCK and ROOM, the longest row that is sorted in shared memory.  The order of atoms
// in a cell depends on the order in which blocks run; that of the rows does not, as they are sorted by the atoms' types,
// ids and positions.
#include "block.h"
#include "exact.h"
#include "scan.h"

namespace dphpc {

using Bits = unsigned long long;

// Arguments of the kernels, passed by value; their twins are in dphpc/ops/neighbors/cuda.py.
struct Atoms {
    const double* positions;  // (n_all, 3)
    const int* types;         // (n_all)
    const long long* ids;     // (n_all)
    const Count* n_ghost;     // or null if all rows are atoms
    int n_rows, n_local;

    __device__ long long n_all() const {
        return n_ghost && n_local + *n_ghost < n_rows ? n_local + *n_ghost : n_rows;
    }
};

struct Grid {
    double low[3], inverse_edge[3];
    int shape[3], span[3];  // cells, and how many of them to look at on each side
};

struct Cells {
    int* count;          // (n_cells) atoms that have no slot yet
    const Count* start;  // (n_cells + 1) first slot of each cell
    int* cell_of;        // (n_all)
    int* atom;           // (n_all) in each slot
    double *x, *y, *z;   // (n_all) its position
};

struct Rows {
    const Count* offsets;  // (n_local + 1)
    int* indices;          // (capacity)
    Count capacity;
    double limit;  // Å², of a neighbor's distance
};

// Integers with the same order as the doubles.
__device__ inline Bits ordered(double x) {
    const Bits bits = static_cast<Bits>(__double_as_longlong(x)), sign = 1ull << 63;
    return bits & sign ? ~bits : bits | sign;
}

constexpr int n_bounds = 7;

// bounds (7), initially all bits set: lower bounds, complements of upper bounds, and the first atom that has no finite
// position.
extern "C" __global__ void __launch_bounds__(BLOCK)
find_bounds(const Atoms atoms, Bits* bounds) {
    Bits mine[n_bounds];
    for (int k = 0; k < n_bounds; ++k) mine[k] = ~0ull;
    const long long n_all = atoms.n_all();
    for (long long i = my_place(); i < n_all; i += n_threads())
        for (int d = 0; d < 3; ++d) {
            const double x = atoms.positions[3 * i + d];
            if (!(fabs(x) < 1.0 / 0.0)) {
                mine[6] = static_cast<Bits>(i) < mine[6] ? static_cast<Bits>(i) : mine[6];
                continue;
            }
            const Bits up = ordered(x), down = ~up;
            mine[d] = up < mine[d] ? up : mine[d];
            mine[3 + d] = down < mine[3 + d] ? down : mine[3 + d];
        }
    for (int k = 0; k < n_bounds; ++k) {
        for (int distance = WARP / 2; distance > 0; distance /= 2) {
            const Bits other = lane_below(mine[k], distance);
            mine[k] = other < mine[k] ? other : mine[k];
        }
        if (threadIdx.x % WARP == 0) atomicMin(bounds + k, mine[k]);
    }
}

// Atoms beyond the grid belong to the cells at its faces; this brings no two atoms farther apart.
__device__ inline int place_along(const Grid& grid, double x, int d) {
    const long long k = static_cast<long long>((x - grid.low[d]) * grid.inverse_edge[d]);
    return k < 0 ? 0 : k < grid.shape[d] - 1 ? static_cast<int>(k) : grid.shape[d] - 1;
}

// The cell of each atom, and the number of atoms in each cell; the counts are initially 0.
extern "C" __global__ void __launch_bounds__(BLOCK)
count_cells(const Atoms atoms, const Grid grid, const Cells cells) {
    const long long i = my_place();
    if (i >= atoms.n_all()) return;
    int place[3];
    for (int d = 0; d < 3; ++d) place[d] = place_along(grid, atoms.positions[3 * i + d], d);
    const int cell = (place[2] * grid.shape[1] + place[1]) * grid.shape[0] + place[0];
    cells.cell_of[i] = cell;
    atomicAdd(cells.count + cell, 1);
}

// Gives each atom a slot in its cell by counting down; the counts become 0 again.
extern "C" __global__ void __launch_bounds__(BLOCK)
fill_cells(const Atoms atoms, const Cells cells) {
    const long long i = my_place();
    if (i >= atoms.n_all()) return;
    const int cell = cells.cell_of[i];
    const Count slot = cells.start[cell] + atomicAdd(cells.count + cell, -1) - 1;
    cells.atom[slot] = static_cast<int>(i);
    cells.x[slot] = atoms.positions[3 * i];
    cells.y[slot] = atoms.positions[3 * i + 1];
    cells.z[slot] = atoms.positions[3 * i + 2];
}

// Calls found(atom) for each neighbor of a slot's atom, by one thread.  A warp searches a line of cells along x, whose slots
// are contiguous.
template <class Found>
__device__ inline void for_neighbors(const Grid& grid, const Cells& cells, Count slot, double limit, Found&& found) {
    const double p[3] = {cells.x[slot], cells.y[slot], cells.z[slot]};
    int from[3], n[3];
    for (int d = 0; d < 3; ++d) {
        const int k = place_along(grid, p[d], d), last = grid.shape[d] - 1;
        from[d] = k > grid.span[d] ? k - grid.span[d] : 0;
        n[d] = (k < last - grid.span[d] ? k + grid.span[d] : last) - from[d] + 1;
    }
    for (int line = threadIdx.x / WARP; line < n[1] * n[2]; line += BLOCK / WARP) {
        const int y = from[1] + line % n[1], z = from[2] + line / n[1];
        const int cell = (z * grid.shape[1] + y) * grid.shape[0] + from[0];
        const Count last = cells.start[cell + n[0]];
        for (Count k = cells.start[cell] + threadIdx.x % WARP; k < last; k += WARP) {
            const double x[3] = {cells.x[k] - p[0], cells.y[k] - p[1], cells.z[k] - p[2]};
            if (dot(x, x, 1) < limit && k != slot) found(cells.atom[k]);
        }
    }
}

// counts (n_local) of neighbors; one block for each slot.
extern "C" __global__ void __launch_bounds__(BLOCK)
count_rows(const Atoms atoms, const Grid grid, const Cells cells, const Rows rows, int* counts) {
    __shared__ int n_found;
    if (blockIdx.x >= atoms.n_all()) return;  // the whole block
    const int atom = cells.atom[blockIdx.x];
    if (atom >= atoms.n_local) return;  // the whole block
    if (threadIdx.x == 0) n_found = 0;
    __syncthreads();
    int mine = 0;
    for_neighbors(grid, cells, blockIdx.x, rows.limit, [&](int) { ++mine; });
    mine = warp_sum(mine);
    if (threadIdx.x % WARP == 0) atomicAdd(&n_found, mine);
    __syncthreads();
    if (threadIdx.x == 0) counts[atom] = n_found;
}

// The sort key of a row's entry, before the position; only images of one atom have equal types and ids.
struct Entry {
    long long id;
    int type, atom;
};

__device__ inline Entry entry_of(const Atoms& atoms, int atom) { return {atoms.ids[atom], atoms.types[atom], atom}; }

__device__ inline bool before(const Entry& a, const Entry& b, const double* positions) {
    if (a.type != b.type) return a.type < b.type;
    if (a.id != b.id) return a.id < b.id;
    for (int d = 0; d < 3; ++d) {
        const double x = positions[3ll * a.atom + d], y = positions[3ll * b.atom + d];
        if (x != y) return x < y;
    }
    return a.atom < b.atom;
}

struct RowInShared {
    Entry* entries;
    __device__ Entry get(int k) const { return entries[k]; }
    __device__ void put(int k, const Entry& entry) const { entries[k] = entry; }
};

struct RowInMemory {
    const Atoms& atoms;
    int* indices;
    __device__ Entry get(int k) const { return entry_of(atoms, indices[k]); }
    __device__ void put(int k, const Entry& entry) const { indices[k] = entry.atom; }
};

// Sorts n entries by a block: a bitonic network with all comparisons in the same direction, in which missing entries at the
// end count as larger than all others and stay in place.
template <class Row>
__device__ inline void sort_row(const Row& row, int n, const double* positions) {
    for (int half = 1; half < n; half *= 2)
        for (int step = half; step > 0; step /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x;; pair += BLOCK) {
                const int q = pair & (step - 1), i = 2 * pair - q;
                if (i >= n) break;
                const int j = step == half ? i + 2 * (half - q) - 1 : i + step;  // first the mirror image, then one step on
                if (j >= n) continue;
                const Entry a = row.get(i), b = row.get(j);
                if (before(b, a, positions)) row.put(i, b), row.put(j, a);
            }
        }
    __syncthreads();
}

// Fills the rows that end within the capacity; one block for each slot.
extern "C" __global__ void __launch_bounds__(BLOCK)
fill_rows(const Atoms atoms, const Grid grid, const Cells cells, const Rows rows) {
    __shared__ Entry entries[ROOM];
    __shared__ int n_found;
    if (blockIdx.x >= atoms.n_all()) return;  // the whole block
    const int atom = cells.atom[blockIdx.x];
    if (atom >= atoms.n_local || rows.offsets[atom + 1] > rows.capacity) return;  // the whole block
    int* indices = rows.indices + rows.offsets[atom];
    const int n = static_cast<int>(rows.offsets[atom + 1] - rows.offsets[atom]);
    if (threadIdx.x == 0) n_found = 0;
    __syncthreads();
    for_neighbors(grid, cells, blockIdx.x, rows.limit, [&](int other) {
        const int place = atomicAdd(&n_found, 1);
        if (n > ROOM) indices[place] = other;
        else entries[place] = entry_of(atoms, other);
    });
    __syncthreads();
    if (n > ROOM) {
        sort_row(RowInMemory{atoms, indices}, n, atoms.positions);
    } else {
        sort_row(RowInShared{entries}, n, atoms.positions);
        for (int k = threadIdx.x; k < n; k += BLOCK) indices[k] = entries[k].atom;
    }
}

}  // namespace dphpc
