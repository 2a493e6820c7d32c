// A RadialGrid of its parts, on the host.
#pragma once

#include <algorithm>
#include <limits>

#include "radial_grid.h"

namespace dphpc {

// Of n parts, the k-th one begins at starts[k] and has counts[k] intervals as wide as steps[k].
inline RadialGrid grid_of_parts(int n, const double* starts, const double* steps, const int* counts) {
    RadialGrid grid{};
    std::fill(grid.starts, grid.starts + RadialGrid::most_parts, std::numeric_limits<double>::infinity());
    int first = 0;
    for (int k = 0; k < n; ++k) {
        grid.starts[k] = starts[k], grid.inverse_steps[k] = 1.0 / steps[k];
        grid.first[k] = first, grid.last[k] = counts[k] - 1;
        first += counts[k];
    }
    return grid;
}

}  // namespace dphpc
