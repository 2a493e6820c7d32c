// What describes atoms to the se_e2_a kernels on the CPU; dphpc/ops/se_a/contract.py has formulas and shapes.
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

// Sets features (n, M, axis) from moments (n, 4, M).
template <class Real>
void features(const Real* moments, std::int64_t n, int channels, int axis, int threads, Real* features);

}  // namespace dphpc
