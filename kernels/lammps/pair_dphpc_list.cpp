// Neighbors of pair_style dphpc: conversion of LAMMPS' list to the form that the kernels read.
#include <algorithm>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair_dphpc.h"

using namespace LAMMPS_NS;

namespace {

constexpr int of_all = 1;      // bit of the group of all atoms
constexpr int sample = 16384;  // most atoms of a rank whose numbers of neighbors are compared with sel

}  // namespace

// Checks when a run begins whether LAMMPS' list contains all pairs.
void PairDphpc::look_at_list() {
    new_run_ = false;
    const int* flag = neighbor->special_flag;  // 0 for bonded pairs that are not in the list
    if (atom->molecular != Atom::ATOMIC && atom->nbonds > 0 && !(flag[1] && flag[2] && flag[3]))
        error->all(FLERR, "pair_style dphpc sees bonded pairs, too: say special_bonds lj/coul 1 1 1");
    if (!neighbor->exclude || comm->me != 0) return;
    bool some = neighbor->nex_type > 0 || neighbor->nex_mol > 0;
    for (int k = 0; k < neighbor->nex_group; ++k)
        some = some || (neighbor->ex1_bit[k] != of_all && neighbor->ex2_bit[k] != of_all);
    if (some)
        error->warning(FLERR, "neigh_modify exclude: pair_style dphpc does not see these pairs, which changes energies "
                       "and forces of all atoms near them");
}

// Bits of groups that are excluded from all interactions, as `fix gcmc` does to compute the energy without an atom.
int PairDphpc::mask_of_absent() const {
    int mask = 0;
    for (int k = 0; neighbor->exclude && k < neighbor->nex_group; ++k) {
        if (neighbor->ex2_bit[k] == of_all) mask |= neighbor->ex1_bit[k];
        if (neighbor->ex1_bit[k] == of_all) mask |= neighbor->ex2_bit[k];
    }
    return mask;
}

// Whether types have changed since the list was converted, as some fixes change them.
bool PairDphpc::has_other_types() const {
    const int n_all = atom->nlocal + atom->nghost;
    if (static_cast<int>(types_.size()) != n_all) return true;
    for (int i = 0; i < n_all; ++i)
        if (types_[i] != type_of_[atom->type[i]]) return true;
    return false;
}

// Converts the rows of the full list: in the order of centers, and each sorted by type.
void PairDphpc::take_list() {
    const int n_all = atom->nlocal + atom->nghost;
    types_.resize(n_all);
    for (int i = 0; i < n_all; ++i) types_[i] = type_of_[atom->type[i]];
    centers_.assign(models_[0].settings.n_types(), {});
    std::vector<int> listed(atom->nlocal, -1);  // index in LAMMPS' list
    const int absent = mask_of_absent();
    for (int k = 0; k < list->inum; ++k) {
        const int i = list->ilist[k];
        if (types_[i] < 0 || atom->mask[i] & absent) continue;
        listed[i] = k;
        centers_[types_[i]].push_back(i);
    }
    offsets_.assign(atom->nlocal + 1, 0);
    std::int64_t n_pairs = 0;
    for (int i = 0; i < atom->nlocal; ++i) {
        if (listed[i] >= 0) n_pairs += list->numneigh[i];
        offsets_[i + 1] = n_pairs;
    }
    indices_.resize(n_pairs);
    for (int i = 0; i < atom->nlocal; ++i)
        if (listed[i] >= 0) order_row(i, list->firstneigh[i], list->numneigh[i]);
}

void PairDphpc::order_row(int i, const int* neighbors, int n) {
    const int n_types = models_[0].settings.n_types();
    place_.assign(n_types + 1, 0);
    for (int k = 0; k < n; ++k) ++place_[types_[neighbors[k] & NEIGHMASK] + 1];
    // A list that LAMMPS makes for this pair style contains only types on which it acts.
    if (place_[0] > 0) error->one(FLERR, "pair_style dphpc: the list of atom {} holds types that are NULL", i);
    place_[0] = offsets_[i];
    for (int t = 0; t < n_types; ++t) place_[t + 1] += place_[t];
    for (int k = 0; k < n; ++k) {
        const int j = neighbors[k] & NEIGHMASK;
        indices_[place_[types_[j]]++] = j;
    }
}

dphpc::System PairDphpc::system() const {
    const double* x = atom->x && atom->nlocal + atom->nghost ? atom->x[0] : nullptr;
    return {x, types_.data(), offsets_.data(), indices_.data(), nullptr, static_cast<std::int64_t>(types_.size()), 0};
}

// Warns once if an atom has more neighbors than `sel`, of which DeePMD-kit would drop the farthest.
void PairDphpc::look_over() {
    looked_over_ = true;
    const Loaded& loaded = models_[0];
    const double limit = loaded.settings.rcut * loaded.settings.rcut;
    const bool mixed = loaded.model->mixed_sel();
    std::vector<int> counts(loaded.settings.n_types());
    for (int i = 0; i < std::min(atom->nlocal, sample); ++i) {
        std::fill(counts.begin(), counts.end(), 0);
        for (std::int64_t k = offsets_[i]; k < offsets_[i + 1]; ++k) {
            const int j = indices_[k];
            double r2 = 0.0;
            for (int a = 0; a < 3; ++a) r2 += (atom->x[j][a] - atom->x[i][a]) * (atom->x[j][a] - atom->x[i][a]);
            counts[mixed ? 0 : types_[j]] += r2 < limit;
        }
        for (std::size_t t = 0; t < counts.size(); ++t) {
            const int sel = loaded.model->sel()[t];
            if (sel == 0 || counts[t] <= sel) continue;
            error->warning(FLERR, "atom {} has {} neighbors{}, sel is {}: all of them count here, while DeePMD-kit "
                           "drops the farthest", atom->tag[i], counts[t],
                           mixed ? "" : " of type " + loaded.settings.type_map[t], sel);
            return;
        }
    }
}
