// The pairs of one center: environment rows, their place in the table, and the groups they form there.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "channels.h"
#include "se_a.h"

namespace dphpc {

// One value for each pair of a center, as separate arrays so that the loop that fills them is vectorized.
struct PairArrays {
    std::vector<std::int32_t> neighbor, interval, group;
    std::vector<double> x, y, z, r2;
    std::vector<double> s, v;            // row = (s, v·x, v·y, v·z), normalized
    std::vector<double> ds_r, dv_r;      // (ds/dr)/r and (dv/dr)/r
    std::vector<double> t, inverse_step; // place in the interval and dt/ds

    void resize(std::size_t n) {
        for (auto* a : {&neighbor, &interval, &group}) a->resize(n);
        for (auto* a : {&x, &y, &z, &r2, &s, &v, &ds_r, &dv_r, &t, &inverse_step}) a->resize(n);
    }
};

template <class Real>
class Center {
  public:
    explicit Center(const Descriptor<Real>& d) : d_(d), group_of_(d.n_intervals, -1), free_(d.n_types) {}

    // Reads the row of atom `center`; afterwards the members below describe it.
    void read(const System& system, std::int32_t center) {
        const std::int64_t first = system.offsets[center], last = system.offsets[center + 1];
        if (pairs.x.size() < static_cast<std::size_t>(last - first + 1)) pairs.resize(last - first + 64);
        type = system.types[center];
        n_pairs = 0;
        found_.clear(), sizes_.clear();
        for (int t = 0; t < d_.n_types; ++t) free_[t] = d_.sel[t];
        const double* xi = system.positions + 3 * center;
        for (std::int64_t k = first; k < last;) k = read_type(system, xi, k, last);
        put_crowded_first();
    }

    // The normalized row of a pair and its place.
    void row(int p, double* row) const {
        row[0] = pairs.s[p];
        row[1] = pairs.v[p] * pairs.x[p];
        row[2] = pairs.v[p] * pairs.y[p];
        row[3] = pairs.v[p] * pairs.z[p];
    }

    int n_groups() const { return static_cast<int>(coefficients_.size()); }
    Groups<Real> groups() const { return {coefficients_.data(), n_crowded, n_groups()}; }
    const Real* coefficients(int group) const { return coefficients_[group]; }
    bool is_single(int group) const { return group >= n_crowded; }
    // sel_t − n_t
    const double* free_slots() const { return free_.data(); }

    PairArrays pairs;
    int type = 0, n_pairs = 0, n_crowded = 0;
    double largest = -std::numeric_limits<double>::infinity();  // s̃ of all pairs read so far

  private:
    // Reads the neighbors of one type, which start at k; returns where the next type starts.
    std::int64_t read_type(const System& system, const double* xi, std::int64_t k, std::int64_t last) {
        const std::int32_t other = system.types[system.indices[k]];
        const std::uint8_t flags = d_.flags[type * d_.n_types + other];
        const int first_pair = n_pairs;
        const double limit = d_.cut.rcut * d_.cut.rcut;
        int n = n_pairs;
        for (; k < last; ++k) {
            const std::int32_t j = system.indices[k];
            if (system.types[j] != other) break;
            const double* xj = system.positions + 3 * static_cast<std::int64_t>(j);
            double x = xj[0] - xi[0], y = xj[1] - xi[1], z = xj[2] - xi[2];
            if (d_.round_displacements) x = static_cast<float>(x), y = static_cast<float>(y), z = static_cast<float>(z);
            const double r2 = x * x + y * y + z * z;
            pairs.neighbor[n] = j;
            pairs.x[n] = x, pairs.y[n] = y, pairs.z[n] = z, pairs.r2[n] = r2;
            n += r2 < limit;
        }
        if (flags & counted) free_[other] -= n - first_pair;
        if (!(flags & used)) return k;
        n_pairs = n;
        place(first_pair, other);
        group(first_pair, other);
        return k;
    }

    void place(int first_pair, int other) {
        const RadialGrid grid = d_.grids[d_.network[type * d_.n_types + other]];
        const SwitchParameters cut = d_.cut;
        const double mean = d_.davg[type], norm = 1.0 / d_.dstd[2 * type], norm_xyz = 1.0 / d_.dstd[2 * type + 1];
        const double* r2 = pairs.r2.data();
        double *s = pairs.s.data(), *v = pairs.v.data(), *ds_r = pairs.ds_r.data(), *dv_r = pairs.dv_r.data();
        double *t = pairs.t.data(), *inverse_step = pairs.inverse_step.data();
        std::int32_t* interval = pairs.interval.data();
        double high = largest;
#pragma omp simd reduction(max : high)
        for (int p = first_pair; p < n_pairs; ++p) {
            const double r = std::sqrt(r2[p]), inverse_r = 1.0 / r;
            const RadialParts<double> parts = radial_parts(r, cut);
            s[p] = (parts.s - mean) * norm;
            v[p] = parts.v * norm_xyz;
            ds_r[p] = parts.ds * norm * inverse_r;
            dv_r[p] = parts.dv * norm_xyz * inverse_r;
            interval[p] = locate(grid, s[p], t[p], inverse_step[p]);
            high = s[p] > high ? s[p] : high;
        }
        largest = high;
    }

    // Pairs of one interval share a group; groups stand in the order in which the row meets them.
    void group(int first_pair, int other) {
        const std::size_t table = d_.network[type * d_.n_types + other];
        const Real* base = d_.coefficients + table * d_.n_intervals * n_powers * d_.channels;
        for (int p = first_pair; p < n_pairs; ++p) {
            std::int32_t& g = group_of_[pairs.interval[p]];
            if (g < 0) {
                g = static_cast<std::int32_t>(found_.size());
                found_.push_back(base + static_cast<std::size_t>(pairs.interval[p]) * n_powers * d_.channels);
                sizes_.push_back(0);
            }
            ++sizes_[g];
            pairs.group[p] = g;
        }
        for (int p = first_pair; p < n_pairs; ++p) group_of_[pairs.interval[p]] = -1;
    }

    void put_crowded_first() {
        n_crowded = 0;
        for (const std::int32_t size : sizes_) n_crowded += size > 1;
        coefficients_.resize(found_.size());
        int crowded = 0, single = n_crowded;
        for (std::size_t g = 0; g < found_.size(); ++g) {
            const int place = sizes_[g] > 1 ? crowded++ : single++;
            coefficients_[place] = found_[g];
            sizes_[g] = place;
        }
        for (int p = 0; p < n_pairs; ++p) pairs.group[p] = sizes_[pairs.group[p]];
    }

    const Descriptor<Real>& d_;
    std::vector<std::int32_t> group_of_;  // (n_intervals), −1 between uses
    std::vector<const Real*> found_, coefficients_;  // of each group, as met and crowded ones first
    std::vector<std::int32_t> sizes_;                // pairs of each group as met; then its place
    std::vector<double> free_;
};

}  // namespace dphpc
