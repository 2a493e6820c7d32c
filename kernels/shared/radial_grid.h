// Where an argument lies in a radial table: knots in uniform parts, as dphpc.model.radial_table.Grid.
#pragma once

#include "hd.h"

namespace dphpc {

// Its twin is in dphpc/ops/structs.py.  Parts that are not there start at infinity.
struct RadialGrid {
    static constexpr int most_parts = 4;
    double starts[most_parts], inverse_steps[most_parts];
    int first[most_parts], last[most_parts];  // intervals before the part; the last one's place in it
};

// Interval and local coordinate t; beyond the ends the first or the last interval goes on.
DPHPC_HD int locate(const RadialGrid& grid, double s, double& t, double& inverse_step) {
    double start = grid.starts[0];
    int first = grid.first[0], last = grid.last[0];
    inverse_step = grid.inverse_steps[0];
    for (int k = 1; k < RadialGrid::most_parts; ++k) {  // without branches, for vectors
        const bool behind = s >= grid.starts[k];
        start = behind ? grid.starts[k] : start;
        inverse_step = behind ? grid.inverse_steps[k] : inverse_step;
        first = behind ? grid.first[k] : first;
        last = behind ? grid.last[k] : last;
    }
    const double place = (s - start) * inverse_step;
    // Limited before the conversion: a huge argument must not overflow the integer.
    const double limited = place < double(last) ? place : double(last);
    const int index = limited > 0.0 ? int(limited) : 0;
    t = place - index;
    return first + index;
}

}  // namespace dphpc
