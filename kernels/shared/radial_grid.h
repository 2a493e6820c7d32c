// Where an argument lies in a radial table: knots in two uniform parts, as dphpc.model.radial_table.Grid.
#pragma once

#include "hd.h"

namespace dphpc {

struct RadialGrid {
    double lower, middle, inverse_fine, inverse_coarse;
    int n_fine, n_coarse;
};

// Interval and local coordinate t; beyond the ends the first or the last interval goes on.
DPHPC_HD int locate(const RadialGrid& grid, double s, double& t, double& inverse_step) {
    const bool fine = s < grid.middle || grid.n_coarse == 0;
    const double from = fine ? grid.lower : grid.middle;
    inverse_step = fine ? grid.inverse_fine : grid.inverse_coarse;
    const int last = (fine ? grid.n_fine : grid.n_coarse) - 1;
    const double place = (s - from) * inverse_step;
    // Limited before the conversion: a huge argument must not overflow the integer.
    const double limited = place < double(last) ? place : double(last);
    const int index = limited > 0.0 ? int(limited) : 0;
    t = place - index;
    return fine ? index : grid.n_fine + index;
}

}  // namespace dphpc
