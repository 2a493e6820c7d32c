#include "energy.h"

#include <algorithm>
#include <limits>

#include "center_sums.h"
#include "parallel.h"

namespace dphpc {
namespace {

constexpr std::int64_t tile_size = 64;    // atoms of a tile; measured in benchmarks/NOTES.md
constexpr std::int64_t net_in_pairs = 200;  // cost of an atom's fitting net, in units of the cost of a pair

// Memory that a thread keeps from call to call.
template <class Real>
struct Workspace {
    FittingTile<Real> fitting;
    std::vector<Real> moments, adjoint, projected;
    Weights<Real> weights;
    Reading<Real> reading;
    std::vector<Center<Real>> centers{tile_size};
    ForceShare forces;
    ExactSum virial[9];
    double largest;  // largest s̃ so far
};

template <class Real>
void evaluate_tile(const System& system, const Descriptor<Real>& d, const PackedNet<Real>& net, const Real* columns,
                   std::int64_t first, std::int64_t last, const EnergyOutputs& out, Workspace<Real>& work) {
    const std::size_t n_row = n_rows * d.channels, n = last - first;
    work.moments.resize(std::max(work.moments.size(), n * n_row));
    work.adjoint.resize(work.moments.size());
    for (std::size_t i = 0; i < n; ++i) {
        Center<Real>& center = work.centers[i];
        center.read(system, d, system.centers[first + i], work.reading);
        work.largest = std::max(work.largest, center.largest);
        center_moments(d, center, work.weights, work.moments.data() + i * n_row);
    }
    FittingTile<Real>& tile = work.fitting;
    tile.n = static_cast<int>(n);
    tile.inputs = {work.moments.data(), columns ? columns + first * net.n_columns : nullptr};
    tile.moments_adjoint = work.adjoint.data();
    evaluate(net, tile);
    for (std::size_t i = 0; i < n; ++i) {
        const std::int32_t atom = system.centers[first + i];
        const Center<Real>& center = work.centers[i];
        out.energies[first + i] = tile.value.back()[i * net.layers.back().step()];
        work.forces.reserve(center.n_pairs + 1);
        project_groups(center, work.adjoint.data() + i * n_row, d.channels, work.projected);
        double own[9];
        add_forces(center, atom, work.projected.data(), d.scale, RoundTo(out.force_spacing), work.forces,
                   out.atom_virial != nullptr, own);
        for (int k = 0; k < 9; ++k) work.virial[k].add(own[k]);
    }
}

}  // namespace

template <class Real>
double energy_and_forces(const System& system, const Descriptor<Real>& d, const PackedNet<Real>& net,
                         const Real* columns, int threads, const EnergyOutputs& out) {
    threads = useful_threads(threads, system.n_centers);
    const auto bounds = equal_shares(system, threads, net_in_pairs);
    std::vector<ForceShare*> shares(threads);
    constexpr double lowest = -std::numeric_limits<double>::infinity();
    double largest = lowest;
#pragma omp parallel num_threads(threads)
    {
        thread_local Workspace<Real> work;
        const int team = team_size(), me = thread_id();
        shares[me] = &work.forces;
        work.forces.start(out.forces, out.atom_virial, system.n_all, team == 1);
        std::fill(work.virial, work.virial + 9, ExactSum());
        work.largest = lowest;
        // If the team is smaller than asked for, its threads take several shares each.
        for (int part = threads * me / team; part < threads * (me + 1) / team; ++part) {
            const std::int64_t from = bounds[part], n = bounds[part + 1] - from;
            const std::int64_t n_tiles = (n + tile_size - 1) / tile_size;
            for (std::int64_t t = 0; t < n_tiles; ++t)
                evaluate_tile(system, d, net, columns, from + n * t / n_tiles, from + n * (t + 1) / n_tiles, out, work);
        }
        add_shares(shares, me, team, out.forces, out.atom_virial, system.n_all);
#pragma omp critical
        {
            largest = std::max(largest, work.largest);  // exact sums: the threads may come in any order
            for (int part = 0; part < ExactSum::parts; ++part)
                for (int k = 0; k < 9; ++k) out.virial[9 * part + k] += work.virial[k].part[part];
        }
    }
    return largest;
}

#define DPHPC_INSTANTIATE(Real)                                                                               \
    template double energy_and_forces(const System&, const Descriptor<Real>&, const PackedNet<Real>&, const Real*, \
                                      int, const EnergyOutputs&);
DPHPC_INSTANTIATE(double)
DPHPC_INSTANTIATE(float)

}  // namespace dphpc
