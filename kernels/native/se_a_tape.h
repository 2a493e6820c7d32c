// The se_e2_a descriptor in training: the passes over one batch, of which the first reads the pairs for all.
#pragma once

#include <vector>

#include "center_sums.h"

namespace dphpc {

// Local atoms that the last atoms of a system are images of.
struct Images {
    const std::int32_t* owners;  // (n)
    std::int64_t n;
};

// The passes are called in this order, with the same system and descriptor; the number of threads is the first one's.
template <class Real>
class SeATape {
  public:
    // Sets moments (n_centers, 4, M); returns the largest s̃ of all pairs, −∞ without pairs.
    double moments(const System& system, const Descriptor<Real>& d, int threads, Real* moments);

    // Adds to forces (n_local, 3), those on images to their owners'; sets center_virial (n_centers, 9).
    void forces_into(const System& system, const Images& images, const Descriptor<Real>& d, const Real* moments_adjoint,
                     double* forces, double* center_virial);

    // Sets moments_dot (n_centers, 4, M), the moments' derivative along direction (n_local, 3), in which images follow
    // their owners, and strain (n_centers, 9).
    void tangent(const System& system, const Images& images, const Descriptor<Real>& d, const double* direction,
                 const double* strain, Real* moments_dot);

    // Sets the gradients of the table's coefficients and of `empty`, of the same shapes as these.
    void tangent_adjoint(const System& system, const Descriptor<Real>& d, const Real* moments_adjoint,
                         const Real* moments_dot_adjoint, double* coefficients, double* empty) const;

  private:
    int threads_ = 1;
    // Of each center; memory is kept from batch to batch.
    std::vector<Center<Real>> centers_;
    std::vector<Weights<Real>> plain_, tangent_;
    std::vector<double> of_all_;  // (n_all, 3) forces or direction, images included
};

}  // namespace dphpc
