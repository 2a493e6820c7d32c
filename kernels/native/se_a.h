// The operations of the se_e2_a descriptor on the CPU; dphpc/ops/se_a/contract.py has formulas and shapes.
#pragma once

#include <cstdint>
#include <vector>

#include "env_row.h"
#include "radial_grid.h"

namespace dphpc {

// Flags of a (center type, neighbor type) pair, as in dphpc.model.descriptor.
constexpr std::uint8_t used = 1, counted = 2;

struct System {
    const double* positions;       // (n_all, 3)
    const std::int32_t* types;     // (n_all)
    const std::int64_t* offsets;   // (n_local + 1)
    const std::int32_t* indices;
    const std::int32_t* centers;   // (n_centers)
    std::int64_t n_all, n_centers;
};

template <class Real>
struct Descriptor {
    SwitchParameters cut;
    double scale;
    int n_types, channels, n_intervals;  // n_intervals is that of the longest table
    const std::int32_t* sel;
    const double* davg;                  // (n_types)
    const double* dstd;                  // (n_types, 2)
    const std::int32_t* network;         // (n_types, n_types)
    const std::uint8_t* flags;           // (n_types, n_types)
    const Real* coefficients;            // (n_tables, n_intervals, 6, M)
    const Real* empty;                   // (n_types, n_types, M)
    std::vector<RadialGrid> grids;       // (n_tables)
    bool round_displacements;            // round them to float32 before they are used
};

// Sets moments (n_centers, 4, M); returns the largest s̃ of all pairs, −∞ without pairs.
template <class Real>
double moments(const System& system, const Descriptor<Real>& d, int threads, Real* moments);

// Adds to forces (n_all, 3) and, unless it is null, atom_virial (n_all, 9); sets center_virial (n_centers, 9).
template <class Real>
void forces_into(const System& system, const Descriptor<Real>& d, int threads, const Real* moments_adjoint,
                 double* forces, double* center_virial, double* atom_virial);

// Sets moments_dot (n_centers, 4, M), the moments' derivative along direction (n_all, 3) and strain (n_centers, 9).
template <class Real>
void tangent(const System& system, const Descriptor<Real>& d, int threads, const double* direction,
             const double* strain, Real* moments_dot);

// Sets the gradients of the table's coefficients and of `empty`, of the same shapes as these.
template <class Real>
void tangent_adjoint(const System& system, const Descriptor<Real>& d, int threads, const double* direction,
                     const double* strain, const Real* moments_adjoint, const Real* moments_dot_adjoint,
                     double* coefficients, double* empty);

// Sets features (n, M, axis) from moments (n, 4, M).
template <class Real>
void features(const Real* moments, std::int64_t n, int channels, int axis, int threads, Real* features);

}  // namespace dphpc
