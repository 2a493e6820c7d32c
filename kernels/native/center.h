// The pairs of one center: their environment rows, positions in the table, and groups by interval.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "channels.h"
#include "se_a.h"

namespace dphpc {

// A pair of a center.  What belongs to it is side by side, so that passes over many centers read one stream of memory.
struct Pair {
    double x, y, z;
    double s, v;             // row = (s, v·x, v·y, v·z), normalized
    double ds_r, dv_r;       // (ds/dr)/r and (dv/dr)/r
    double t, inverse_step;  // position in the interval, and dt/ds
    std::int32_t neighbor, group;
};

// Scratch memory for reading a center, which a thread uses for all its centers.
template <class Real>
struct Reading {
    // Of each pair, in separate arrays for loops over pairs that are vectorized.
    std::vector<double> x, y, z, r2, s, v, ds_r, dv_r, t, inverse_step;
    std::vector<std::int32_t> neighbor, interval, group;
    std::vector<std::int32_t> group_of;  // (n_intervals), −1 between uses
    std::vector<const Real*> found;      // coefficients of each group, in the order in which they are met
    std::vector<std::int32_t> sizes;     // pairs of each group in that order; then its final index

    void start(int n_intervals, std::size_t n_pairs) {
        if (static_cast<int>(group_of.size()) < n_intervals) group_of.resize(n_intervals, -1);
        found.clear(), sizes.clear();
        if (x.size() > n_pairs) return;  // one more: a pair beyond rcut is written, too, where the next will be
        for (auto* a : {&x, &y, &z, &r2, &s, &v, &ds_r, &dv_r, &t, &inverse_step}) a->resize(n_pairs + 64);
        for (auto* a : {&neighbor, &interval, &group}) a->resize(n_pairs + 64);
    }
};

template <class Real>
class Center {
  public:
    // Reads the neighbors of atom `center`; afterwards the members below describe them.
    void read(const System& system, const Descriptor<Real>& d, std::int32_t center, Reading<Real>& reading) {
        const std::int64_t first = system.offsets[center], last = system.offsets[center + 1];
        reading.start(d.n_intervals, static_cast<std::size_t>(last - first));
        type = system.types[center];
        n_pairs = 0;
        largest = -std::numeric_limits<double>::infinity();
        free_.assign(d.sel, d.sel + d.n_types);
        for (std::int64_t k = first; k < last;) k = read_type(system, d, system.positions + 3 * center, k, last, reading);
        put_crowded_first(reading);
        keep(reading);
    }

    // Sets `row` (4) to the normalized environment row of a pair.
    static void row(const Pair& q, double* row) {
        row[0] = q.s;
        row[1] = q.v * q.x;
        row[2] = q.v * q.y;
        row[3] = q.v * q.z;
    }

    int n_groups() const { return static_cast<int>(coefficients_.size()); }
    Groups<Real> groups() const { return {coefficients_.data(), n_crowded, n_groups()}; }
    const Real* coefficients(int group) const { return coefficients_[group]; }
    bool is_single(int group) const { return group >= n_crowded; }
    // (n_types) slots of `sel` that are left empty, sel_t − n_t
    const double* free_slots() const { return free_.data(); }

    std::vector<Pair> pairs;  // at least `n_pairs`
    int type = 0, n_pairs = 0, n_crowded = 0;
    double largest = 0.0;  // largest s̃ of the pairs, −∞ without pairs

  private:
    // Reads the neighbors of one type, which begin at k; returns where the next type begins.
    std::int64_t read_type(const System& system, const Descriptor<Real>& d, const double* xi, std::int64_t k,
                           std::int64_t last, Reading<Real>& reading) {
        const std::int32_t other = system.types[system.indices[k]];
        const std::uint8_t flags = d.flags[type * d.n_types + other];
        const int first_pair = n_pairs;
        const double limit = d.cut.rcut * d.cut.rcut;
        // Local pointers: through the vectors, each store would make the compiler reload all of them.
        std::int32_t* const neighbor = reading.neighbor.data();
        double *const xs = reading.x.data(), *const ys = reading.y.data(), *const zs = reading.z.data();
        double* const r2s = reading.r2.data();
        const std::int32_t *const types = system.types, *const indices = system.indices;
        const double* const positions = system.positions;
        const bool round = d.round_displacements;
        const double xi0 = xi[0], xi1 = xi[1], xi2 = xi[2];
        int n = n_pairs;
        for (; k < last; ++k) {
            const std::int32_t j = indices[k];
            if (types[j] != other) break;
            const double* xj = positions + 3 * static_cast<std::int64_t>(j);
            double x = xj[0] - xi0, y = xj[1] - xi1, z = xj[2] - xi2;
            if (round) x = static_cast<float>(x), y = static_cast<float>(y), z = static_cast<float>(z);
            const double r2 = x * x + y * y + z * z;
            neighbor[n] = j;
            xs[n] = x, ys[n] = y, zs[n] = z, r2s[n] = r2;
            n += r2 < limit;
        }
        if (flags & counted) free_[other] -= n - first_pair;
        if (!(flags & used)) return k;
        n_pairs = n;
        place(d, first_pair, other, reading);
        group(d, first_pair, other, reading);
        return k;
    }

    void place(const Descriptor<Real>& d, int first_pair, int other, Reading<Real>& reading) {
        const RadialGrid grid = d.grids[d.network[type * d.n_types + other]];
        const SwitchParameters cut = d.cut;
        const double mean = d.davg[type], norm = 1.0 / d.dstd[2 * type], norm_xyz = 1.0 / d.dstd[2 * type + 1];
        const double* r2 = reading.r2.data();
        double *s = reading.s.data(), *v = reading.v.data(), *ds_r = reading.ds_r.data(), *dv_r = reading.dv_r.data();
        double *t = reading.t.data(), *inverse_step = reading.inverse_step.data();
        std::int32_t* interval = reading.interval.data();
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

    // Puts the pairs of each interval into a group; groups are numbered in the order in which they are met.
    void group(const Descriptor<Real>& d, int first_pair, int other, Reading<Real>& reading) {
        const std::size_t table = d.network[type * d.n_types + other];
        const Real* base = d.coefficients + table * d.n_intervals * n_powers * d.channels;
        const std::size_t size = static_cast<std::size_t>(n_powers) * d.channels;
        const std::int32_t* const interval = reading.interval.data();
        std::int32_t *const group = reading.group.data(), *const group_of = reading.group_of.data();
        for (int p = first_pair; p < n_pairs; ++p) {
            std::int32_t g = group_of[interval[p]];
            if (g < 0) {
                g = group_of[interval[p]] = static_cast<std::int32_t>(reading.found.size());
                reading.found.push_back(base + interval[p] * size);
                reading.sizes.push_back(0);
            }
            ++reading.sizes[g];
            group[p] = g;
        }
        for (int p = first_pair; p < n_pairs; ++p) group_of[interval[p]] = -1;
    }

    void put_crowded_first(Reading<Real>& reading) {
        n_crowded = 0;
        for (const std::int32_t size : reading.sizes) n_crowded += size > 1;
        coefficients_.resize(reading.found.size());
        int crowded = 0, single = n_crowded;
        for (std::size_t g = 0; g < reading.found.size(); ++g) {
            const int place = reading.sizes[g] > 1 ? crowded++ : single++;
            coefficients_[place] = reading.found[g];
            reading.sizes[g] = place;
        }
    }

    void keep(const Reading<Real>& q) {
        if (pairs.size() < static_cast<std::size_t>(n_pairs)) pairs.resize(n_pairs + 8);
        for (int p = 0; p < n_pairs; ++p)
            pairs[p] = {q.x[p], q.y[p], q.z[p], q.s[p], q.v[p], q.ds_r[p], q.dv_r[p], q.t[p], q.inverse_step[p],
                        q.neighbor[p], q.sizes[q.group[p]]};
    }

    std::vector<const Real*> coefficients_;  // of each group, those of several pairs first
    std::vector<double> free_;
};

}  // namespace dphpc
