// Sums to which many centers, on many threads, add for the same atoms, without atomics and in a reproducible order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "se_a.h"

namespace dphpc {

// One thread's share of forces (and atomic virials).  In a team of one it writes into the result; otherwise it keeps a
// compact list of the atoms it met, so that its memory grows with the work of the call and not with the number of atoms
// (apart from four bytes per atom and thread, kept from call to call).
class ForceShare {
  public:
    void start(double* forces, double* virials, std::int64_t n_all, bool direct) {
        direct_ = direct, with_virial_ = virials != nullptr;
        forces_ = forces, virials_ = virials;
        if (direct) return;
        if (static_cast<std::int64_t>(place_.size()) < n_all) place_.resize(n_all, -1);
        atoms_.clear(), force_sums_.clear(), virial_sums_.clear();
    }

    // Makes room for `n` more atoms; pointers from `force` and `virial` are valid until the next call.
    void reserve(std::size_t n) {
        if (direct_) return;
        const std::size_t size = atoms_.size() + n;
        if (3 * size > force_sums_.size()) force_sums_.resize(3 * size + force_sums_.size() / 2, 0.0);
        if (with_virial_ && 9 * size > virial_sums_.size()) virial_sums_.resize(9 * size + virial_sums_.size() / 2, 0.0);
        forces_ = force_sums_.data(), virials_ = virial_sums_.data();
    }

    // Index of an atom's sums, for `force` and `virial`.
    std::int64_t place(std::int32_t atom) {
        if (direct_) return atom;
        std::int32_t& at = place_[atom];
        if (at < 0) {
            at = static_cast<std::int32_t>(atoms_.size());
            atoms_.push_back(atom);
        }
        return at;
    }
    double* force(std::int64_t place) { return forces_ + 3 * place; }
    double* virial(std::int64_t place) { return virials_ + 9 * place; }

    // Adds the sums of atoms in [first, last) to the results.
    void add_to(double* forces, double* virials, std::int64_t first, std::int64_t last) const {
        for (std::size_t k = 0; k < atoms_.size(); ++k) {
            const std::int64_t atom = atoms_[k];
            if (atom < first || atom >= last) continue;
            for (int i = 0; i < 3; ++i) forces[3 * atom + i] += force_sums_[3 * k + i];
            if (with_virial_)
                for (int i = 0; i < 9; ++i) virials[9 * atom + i] += virial_sums_[9 * k + i];
        }
    }

    // Clears the map of atoms for the next call.
    void finish() {
        for (const std::int32_t atom : atoms_) place_[atom] = -1;
        atoms_.clear();
    }

  private:
    bool direct_ = true, with_virial_ = false;
    double *forces_ = nullptr, *virials_ = nullptr;
    std::vector<std::int32_t> place_, atoms_;
    std::vector<double> force_sums_, virial_sums_;
};

// Adds all shares to the results, each thread for its part of the atoms; all threads of a team call it when their
// shares are complete.
inline void add_shares(const std::vector<ForceShare*>& shares, int me, int team, double* forces, double* virials,
                       std::int64_t n_all) {
    if (team == 1) return;  // the share was written into the results
#pragma omp barrier
    for (int t = 0; t < team; ++t) shares[t]->add_to(forces, virials, n_all * me / team, n_all * (me + 1) / team);
#pragma omp barrier
    shares[me]->finish();
}

// Number of threads that are worth starting for so many centers.
inline int useful_threads(int threads, std::int64_t n_centers) {
    return has_openmp ? static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, n_centers / 4))) : 1;
}

// Bounds of `parts` contiguous ranges of centers with nearly equal work, in pairs; a center costs `own` in addition.
inline std::vector<std::int64_t> equal_shares(const System& system, int parts, std::int64_t own) {
    std::vector<std::int64_t> work(system.n_centers + 1, 0);
    for (std::int64_t i = 0; i < system.n_centers; ++i) {
        const std::int32_t center = system.centers[i];
        work[i + 1] = work[i] + system.offsets[center + 1] - system.offsets[center] + own;
    }
    std::vector<std::int64_t> bounds(parts + 1);
    for (int p = 0; p <= parts; ++p)
        bounds[p] = std::lower_bound(work.begin(), work.end(), work.back() * p / parts) - work.begin();
    bounds[0] = 0, bounds[parts] = system.n_centers;
    return bounds;
}

constexpr std::int64_t own_work = 8;  // cost of a center besides its pairs, in units of the cost of a pair

// Calls work(part, first, last) for contiguous ranges of centers with nearly equal numbers of pairs.
template <class Work>
void share_centers(const System& system, int threads, Work&& work) {
    const auto bounds = equal_shares(system, threads, own_work);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; ++part) work(part, bounds[part], bounds[part + 1]);
}

}  // namespace dphpc
