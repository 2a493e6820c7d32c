// The energies of atoms of one type, added up, and what must not pass unseen; Real, WARP and BLOCK are defined in front.
#include "sums.h"

namespace dphpc {

// energies (n) and largest (n), as `describe` and the fitting net leave them; sum (3) in the parts of exact_sum.h.
extern "C" __global__ void __launch_bounds__(BLOCK)
tally(const Real* energies, const double* largest, long long n, double shift, double upper, double* sum, Count* trouble) {
    ExactSum own;
    bool bad = false;
    for (long long i = my_first(); i < n; i += n_threads()) {
        const double energy = static_cast<double>(energies[i]) + shift;
        bad = bad || !(fabs(energy) < 1.0 / 0.0) || largest[i] > upper;
        own.add(energy);
    }
    if (bad) *trouble = 1;
    add_parts(own, sum);
}

}  // namespace dphpc
