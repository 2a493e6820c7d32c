// Energies of atoms of one type and the forces they exert: descriptor, fitting net and the way back, tile by tile, so
// that everything between positions and forces stays in the caches of the core that works on it.
#pragma once

#include "fitting.h"
#include "se_a.h"

namespace dphpc {

struct EnergyOutputs {
    double* energies;     // (n_centers), is set
    double* forces;       // (n_all, 3), is added to
    double* virial;       // (3, 9), the parts of exact sums, is added to
    double* atom_virial;  // (n_all, 9), is added to; may be null
    double force_spacing; // of which each pair's force is a multiple, or 0
};

// `columns` (n_centers, net.n_columns) are the net's inputs beside the features.  Returns the largest s̃ met, −∞
// without pairs; where that lies beyond a table, the results are extrapolated.
template <class Real>
double energy_and_forces(const System& system, const Descriptor<Real>& d, const PackedNet<Real>& net,
                         const Real* columns, int threads, const EnergyOutputs& out);

}  // namespace dphpc
