// Energies of atoms of one type and the forces that follow from them.  Descriptor, fitting net and the backward pass
// are done tile by tile, so that everything between positions and forces stays in the caches of a core.
#pragma once

#include "fitting.h"
#include "se_a.h"

namespace dphpc {

struct EnergyOutputs {
    double* energies;     // (n_centers) eV, is set
    double* forces;       // (n_all, 3) eV/Å, is added to
    double* virial;       // (3, 9) eV, the parts of exact sums, is added to
    double* atom_virial;  // (n_all, 9) eV, is added to; may be null
    double force_spacing; // eV/Å: each pair's force is rounded to a multiple of it; 0 for no rounding
};

// `columns` (n_centers, net.n_columns) are the net's inputs besides the features.  Returns the largest s̃ of all pairs,
// −∞ without pairs; if it lies beyond the end of a table, the results are extrapolated.
template <class Real>
double energy_and_forces(const System& system, const Descriptor<Real>& d, const PackedNet<Real>& net,
                         const Real* columns, int threads, const EnergyOutputs& out);

}  // namespace dphpc
