// A rank's atoms are wrapped, sorted, and divided by their place in its brick; periodic images are found on a rank that has
// the whole box; data are moved between atoms and ghosts.  Defined in front of this text: WARP and BLOCK.
#include "block.h"
#include "exact.h"
#include "scan.h"

namespace dphpc {

// Arguments of the kernels, passed by value; their twins are in dphpc/ops/ghosts/cuda.py.
struct Box {
    double matrix[9], inverse[9], origin[3];
    int periodic[3];
};

// Which atoms have images: limits of fractional coordinates near both ends of the box, and how many boxes away.
struct Shell {
    double near_high[3], near_low[3];
    int hops[3];
};

// Cells of a brick, from `low` on, by which atoms are sorted.
struct Bins {
    double low[3], scale[3];
    long long n[3];
};

// A brick: fractional coordinates from `low` on and below `high`.
struct Faces {
    double low[3], high[3];
};

// As Box.fractional of dphpc/core/box.py, to the last bit.
__device__ inline double fractional(const Box& box, const double* position, int axis) {
    double offset[3];
    for (int d = 0; d < 3; ++d) offset[d] = position[d] - box.origin[d];
    return dot(offset, box.inverse + axis, 3);
}

// shift · matrix.
__device__ inline void displacement(const Box& box, const int* shift, double* x) {
    const double whole[3] = {static_cast<double>(shift[0]), static_cast<double>(shift[1]), static_cast<double>(shift[2])};
    for (int d = 0; d < 3; ++d) x[d] = dot(whole, box.matrix + d, 3);
}

// Wraps positions (n, 3) into the box along its periodic directions, and counts that in images (n, 3).
extern "C" __global__ void __launch_bounds__(BLOCK)
wrap(const Box box, int n, double* positions, int* images) {
    const long long i = my_place();
    if (i >= n) return;
    double* position = positions + 3 * i;
    int shift[3];
    for (int d = 0; d < 3; ++d)
        shift[d] = box.periodic[d] ? static_cast<int>(floor(fractional(box, position, d))) : 0;
    double x[3];
    displacement(box, shift, x);
    for (int d = 0; d < 3; ++d) position[d] -= x[d], images[3 * i + d] += shift[d];
}

// keys (n) of the atoms' cells; atoms outside belong to the cells at the faces.
extern "C" __global__ void __launch_bounds__(BLOCK)
form_keys(const Box box, const Bins bins, int n, const double* positions, long long* keys) {
    const long long i = my_place();
    if (i >= n) return;
    long long key = 0;
    for (int d = 0; d < 3; ++d) {
        const double place = (fractional(box, positions + 3 * i, d) - bins.low[d]) * bins.scale[d];
        const long long last = bins.n[d] - 1;
        key = key * bins.n[d] + (!(place > 0.0) ? 0 : place < last ? static_cast<long long>(place) : last);
    }
    keys[i] = key;
}

// keys of the atoms at places (n).
extern "C" __global__ void __launch_bounds__(BLOCK) set_keys(int n, const int* places, long long key, long long* keys) {
    const long long i = my_place();
    if (i < n) keys[places[i]] = key;
}

// marks (n): 1 for atoms outside.
extern "C" __global__ void __launch_bounds__(BLOCK)
mark_outside(const Box box, const Faces faces, int n, const double* positions, int* marks) {
    const long long i = my_place();
    if (i >= n) return;
    bool inside = true;
    for (int d = 0; d < 3; ++d) {
        const double x = fractional(box, positions + 3 * i, d);
        inside = inside && x >= faces.low[d] && x < faces.high[d];
    }
    marks[i] = !inside;
}

// places of marks (n); offsets (n) are their running sums.
extern "C" __global__ void __launch_bounds__(BLOCK)
list_marked(int n, const int* marks, const Count* offsets, int* places) {
    const long long i = my_place();
    if (i < n && marks[i]) places[offsets[i]] = static_cast<int>(i);
}

// keys (n) by type and mark, and how many atoms have each: counts (n_keys), which were 0.
extern "C" __global__ void __launch_bounds__(BLOCK)
form_parts(int n, int n_keys, const int* types, const int* marks, int* keys, Count* counts) {
    const long long i = my_place();
    const int key = i < n ? 2 * types[i] + marks[i] : n_keys;
    if (i < n) keys[i] = key;
    for (int k = 0; k < n_keys; ++k) {
        const int alike = __popcll(lanes_where(key == k));
        if (threadIdx.x % WARP == 0 && alike) add(counts + k, alike);
    }
}

// How many images an atom has below and above it along a direction, as in Halo.build_ghosts.
__device__ inline void count_along(const Shell& shell, double where, int d, int& below, int& above) {
    below = above = 0;
    while (below < shell.hops[d] && where - below > shell.near_high[d]) ++below;
    while (above < shell.hops[d] && where + above < shell.near_low[d]) ++above;
}

// counts (n) of images.
extern "C" __global__ void __launch_bounds__(BLOCK)
count_images(const Box box, const Shell shell, int n, const double* positions, int* counts) {
    const long long i = my_place();
    if (i >= n) return;
    int copies = 1;
    for (int d = 0; d < 3; ++d) {
        int below, above;
        count_along(shell, fractional(box, positions + 3 * i, d), d, below, above);
        copies *= 1 + below + above;
    }
    counts[i] = copies - 1;
}

// owners (n_rows) and displacements (n_rows, 3), ordered by owner and then by shift; offsets (n + 1) tell where an atom's
// images begin.  Rows that are left over refer to atom 0; images beyond the last row are left out.
extern "C" __global__ void __launch_bounds__(BLOCK)
list_images(const Box box, const Shell shell, int n, const double* positions, const Count* offsets, int n_rows, int* owners,
            double* displacements) {
    const long long i = my_place();
    if (i >= n) return;
    for (Count row = offsets[n] + i; row < n_rows; row += n) {
        owners[row] = 0;
        for (int d = 0; d < 3; ++d) displacements[3 * row + d] = 0.0;
    }
    int below[3], above[3], shift[3];
    for (int d = 0; d < 3; ++d) count_along(shell, fractional(box, positions + 3 * i, d), d, below[d], above[d]);
    Count ghost = offsets[i];
    for (shift[0] = -below[0]; shift[0] <= above[0]; ++shift[0])
        for (shift[1] = -below[1]; shift[1] <= above[1]; ++shift[1])
            for (shift[2] = -below[2]; shift[2] <= above[2]; ++shift[2]) {
                if (shift[0] == 0 && shift[1] == 0 && shift[2] == 0) continue;
                if (ghost >= n_rows) return;
                owners[ghost] = static_cast<int>(i);
                displacement(box, shift, displacements + 3 * ghost);
                ++ghost;
            }
}

// Sets the rows (n) of `to` to those of `from` at index (n); a row consists of `words` words of four bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
take(long long n, int words, const int* index, const unsigned* from, unsigned* to) {
    const long long i = my_place();
    if (i < n * words) to[i] = from[static_cast<long long>(index[i / words]) * words + i % words];
}

// ghosts (n, 3) = source[index] + displacements (n, 3); without an index source + displacements.
extern "C" __global__ void __launch_bounds__(BLOCK)
displace(long long n, const double* source, const int* index, const double* displacements, double* ghosts) {
    const long long i = my_place();
    if (i < 3 * n) ghosts[i] = source[index ? 3ll * index[i / 3] + i % 3 : i] + displacements[i];
}

// totals[index] += values (n, 3), integers, so that the order of the blocks does not matter.
extern "C" __global__ void __launch_bounds__(BLOCK)
add_rows(long long n, const Count* values, const int* index, Count* totals) {
    const long long i = my_place();
    if (i < 3 * n && values[i] != 0) add(totals + 3ll * index[i / 3] + i % 3, values[i]);
}

}  // namespace dphpc
