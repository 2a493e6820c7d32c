#include "pair_dphpc.h"

#include <algorithm>
#include <cmath>

#include "arguments.h"
#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

namespace {

constexpr std::size_t message_bytes = std::size_t(1) << 28;  // most bytes of a broadcast

}  // namespace

PairDphpc::PairDphpc(LAMMPS* lmp) : Pair(lmp) {
    single_enable = 0;
    restartinfo = 0;  // an input that reads a restart file must give pair_style again
    one_coeff = 1;
    manybody_flag = 1;
    no_virial_fdotr_compute = 1;  // the kernels compute the virial
    centroidstressflag = CENTROID_AVAIL;
    comm_reverse = 3;
}

PairDphpc::~PairDphpc() {
    if (copymode || !allocated) return;
    memory->destroy(setflag);
    memory->destroy(cutsq);
    memory->destroy(scale_);
}

// ------------------------------------------------------------------ commands of the input

void PairDphpc::settings(int narg, char** arg) {
    dphpc::Arguments given;
    forget_types();
    try {
        given = dphpc::arguments_of({arg, arg + narg});
        threads_ = given.threads, out_freq_ = given.out_freq, out_file_ = given.out_file, measure_ = given.measure;
        read_models(given.models, given.single, given.fparam);
    } catch (const std::exception& problem) {
        // The same on all ranks: they have the same arguments and the same bytes.
        models_.clear();
        error->all(FLERR, "pair_style dphpc: {}", std::string(problem.what()));
    }
    looked_over_ = false;
    open_deviation();
    std::string types;
    for (const std::string& name : models_[0].settings.type_map) types += " " + name;
    if (comm->me == 0)
        utils::logmesg(lmp, "dphpc model {}: types{}, cutoff {} A, {}, kernels {}, {} thread(s) a rank\n",
                       models_[0].path, types, models_[0].settings.rcut, given.single ? "mixed" : "float64", DPHPC_ISA,
                       threads_ ? threads_ : comm->nthreads);
}

// Discards the models and the types of pair_coeff, which must be given again for the next models.
void PairDphpc::forget_types() {
    models_.clear();
    type_of_.clear();
    for (int i = 1; allocated && i <= atom->ntypes; ++i)
        for (int j = 1; j <= atom->ntypes; ++j) setflag[i][j] = 0, scale_[i][j] = 1.0;
}

void PairDphpc::read_models(const std::vector<std::string>& paths, bool single, const std::vector<double>& fparam) {
    for (const std::string& path : paths) {
        const dphpc::ModelFile file(path, read_on_all(path));
        Loaded loaded{path, dphpc::ModelSettings(file), nullptr};
        loaded.model = dphpc::model_of(file, loaded.settings, single);
        const dphpc::ModelSettings& s = loaded.settings;
        if (!models_.empty() && s.type_map != models_[0].settings.type_map)
            throw dphpc::FileError(path + " has other types than " + models_[0].path);
        const std::vector<double>& values = fparam.empty() ? s.default_fparam : fparam;
        if (static_cast<int>(values.size()) != s.numb_fparam)
            throw dphpc::FileError(path + " takes " + std::to_string(s.numb_fparam) + " frame parameters, " +
                                   std::to_string(values.size()) + " are given: fparam VALUE ...");
        if (s.numb_fparam > 0) loaded.model->set_fparam(values);
        models_.push_back(std::move(loaded));
    }
}

// Reads a file on the first rank and broadcasts its bytes.
dphpc::Bytes PairDphpc::read_on_all(const std::string& path) {
    dphpc::Bytes bytes;
    std::string problem;
    if (comm->me == 0) {
        try {
            bytes = dphpc::bytes_of(path);
        } catch (const std::exception& error) {
            problem = error.what();
        }
    }
    long long size = problem.empty() ? static_cast<long long>(bytes.size) : -1;
    MPI_Bcast(&size, 1, MPI_LONG_LONG, 0, world);
    if (size < 0)
        throw dphpc::FileError((problem.empty() ? "cannot read the model file '" + path + "'" : problem) +
                               "; `dphpc lammps export MODEL.dp -o FILE` writes one");
    if (comm->me != 0) bytes = dphpc::Bytes(static_cast<std::size_t>(size));
    for (std::size_t at = 0; at < bytes.size; at += message_bytes)
        MPI_Bcast(bytes.data() + at, static_cast<int>(std::min(message_bytes, bytes.size - at)), MPI_BYTE, 0, world);
    return bytes;
}

void PairDphpc::open_deviation() {
    deviation_.close();
    int opened = 1;
    if (comm->me == 0 && models_.size() > 1 && out_freq_ > 0) opened = deviation_.open(out_file_, measure_.atomic);
    MPI_Bcast(&opened, 1, MPI_INT, 0, world);
    if (!opened) error->all(FLERR, "pair_style dphpc: cannot write out_file '{}'", out_file_);
}

void PairDphpc::coeff(int narg, char** arg) {
    const int n = atom->ntypes;
    if (!allocated) {
        memory->create(setflag, n + 1, n + 1, "pair:setflag");
        memory->create(cutsq, n + 1, n + 1, "pair:cutsq");
        memory->create(scale_, n + 1, n + 1, "pair:scale");
        for (int i = 0; i <= n; ++i) std::fill_n(scale_[i], n + 1, 1.0);
        allocated = 1;
    }
    if (models_.empty()) error->all(FLERR, "pair_style dphpc has no model: say pair_style dphpc MODEL first");
    if (narg < 2 || std::string(arg[0]) != "*" || std::string(arg[1]) != "*")
        error->all(FLERR, "pair_style dphpc wants: pair_coeff * * and the name of each atom type in the model");
    try {
        type_of_ = dphpc::types_of({arg + 2, arg + narg}, n, models_[0].settings.type_map);
    } catch (const std::exception& problem) {
        error->all(FLERR, "pair_coeff of pair_style dphpc: {}", std::string(problem.what()));
    }
    for (int i = 1; i <= n; ++i)
        for (int j = 1; j <= n; ++j) setflag[i][j] = type_of_[i] >= 0 && type_of_[j] >= 0;
}

void PairDphpc::init_style() {
    if (force->newton_pair == 0) error->all(FLERR, "pair_style dphpc needs newton on");
    const std::string units = update->unit_style;
    if (units == "metal")
        unit_ = 1.0;
    else if (units == "real")
        unit_ = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
    else
        error->all(FLERR, "pair_style dphpc needs units metal or real, not {}", units);
    if (measure_.atomic && !atom->tag_enable) error->all(FLERR, "pair_style dphpc: atomic needs atoms with ids");
    new_run_ = new_lines_ = true;
    neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairDphpc::init_one(int i, int j) {
    if (setflag[i][j] == 0) error->all(FLERR, "pair_coeff of pair_style dphpc leaves out types {} and {}", i, j);
    double reach = 0.0;
    for (const Loaded& loaded : models_) reach = std::max(reach, loaded.settings.rcut);
    return reach;
}

// Gives `fix adapt` access to `scale`, a factor of energies, forces and virials.
void* PairDphpc::extract(const char* name, int& dimensions) {
    if (std::string(name) != "scale") return nullptr;
    dimensions = 2;
    return scale_;
}

double PairDphpc::scale() const {
    const int n = atom->ntypes;
    double one = 1.0;
    bool found = false;
    for (int i = 1; i <= n; ++i)
        for (int j = i; j <= n; ++j) {
            if (!setflag[i][j]) continue;
            if (found && scale_[i][j] != one) error->all(FLERR, "pair_style dphpc has one scale: scale * * VALUE");
            one = scale_[i][j], found = true;
        }
    return one;
}

// ------------------------------------------------------------------ energies and forces

void PairDphpc::compute(int eflag, int vflag) {
    ev_init(eflag, vflag);
    if (new_run_) look_at_list();
    if (neighbor->ago == 0 || has_other_types()) take_list();
    if (!looked_over_) look_over();
    factor_ = unit_ * scale();
    evaluate_first(models_.size() > 1 && out_freq_ > 0 && update->ntimestep % out_freq_ == 0);
}

void PairDphpc::evaluate(Loaded& loaded, dphpc::Results& results) {
    const dphpc::Trouble trouble =
        loaded.model->evaluate(system(), centers_, threads_ ? threads_ : comm->nthreads, results);
    if (trouble.kind == dphpc::Trouble::too_near) too_near(loaded);
    if (trouble.kind == dphpc::Trouble::not_finite)
        error->one(FLERR, "pair_style dphpc: the energy of atom {} is not finite at step {}: check the structure near it",
                   atom->tag[trouble.center], update->ntimestep);
}

// Evaluates the model that drives the run; its forces go directly into LAMMPS' array if no factor and no other model
// prevents it.
void PairDphpc::evaluate_first(bool with_deviation) {
    const std::size_t n_all = types_.size();
    forces_.resize(models_.size());
    dphpc::Results results{};
    const bool straight = factor_ == 1.0 && !with_deviation;
    if (!straight) forces_[0].assign(3 * n_all, 0.0);
    results.forces = !straight ? forces_[0].data() : n_all ? atom->f[0] : nullptr;
    if (eflag_atom) energies_.assign(atom->nlocal, 0.0), results.atom_energies = energies_.data();
    if (vflag_atom || cvflag_atom) virials_.assign(9 * n_all, 0.0), results.atom_virials = virials_.data();
    evaluate(models_[0], results);
    if (!straight)
        for (std::size_t k = 0; k < 3 * n_all; ++k) atom->f[0][k] += factor_ * forces_[0][k];
    take_results(results);
    if (with_deviation) write_deviation(results);
}

void PairDphpc::take_results(const dphpc::Results& results) {
    // Here a virial's rows are forces, its columns distances.  LAMMPS' six components (distance, force) are xx yy zz xy
    // xz yz, its nine go on with yx zx zy.  An atom's virial is not symmetric: of its six, three are means of two each.
    constexpr int place[9] = {0, 4, 8, 3, 6, 7, 1, 2, 5}, transposed[6] = {0, 4, 8, 1, 2, 5};
    if (eflag_global) eng_vdwl += factor_ * results.energy;
    if (eflag_atom)
        for (int i = 0; i < atom->nlocal; ++i) eatom[i] += factor_ * energies_[i];
    if (vflag_global)
        for (int k = 0; k < 6; ++k) virial[k] += factor_ * results.virial[place[k]];
    const std::size_t n_all = types_.size();
    if (vflag_atom)
        for (std::size_t i = 0; i < n_all; ++i)
            for (int k = 0; k < 6; ++k)
                vatom[i][k] += 0.5 * factor_ * (virials_[9 * i + place[k]] + virials_[9 * i + transposed[k]]);
    if (cvflag_atom)
        for (std::size_t i = 0; i < n_all; ++i)
            for (int k = 0; k < 9; ++k) cvatom[i][k] += factor_ * virials_[9 * i + place[k]];
}

void PairDphpc::too_near(const Loaded& loaded) {
    for (int i = 0; i < atom->nlocal; ++i)
        for (std::int64_t k = offsets_[i]; k < offsets_[i + 1]; ++k) {
            const int j = indices_[k];
            double r2 = 0.0;
            for (int a = 0; a < 3; ++a) r2 += (atom->x[j][a] - atom->x[i][a]) * (atom->x[j][a] - atom->x[i][a]);
            if (r2 >= loaded.settings.rcut * loaded.settings.rcut) continue;
            if (loaded.model->is_too_near(types_[i], types_[j], std::sqrt(r2)))
                error->one(FLERR, "pair_style dphpc: atoms {} and {} are {:.3g} A apart at step {}, nearer than the table of "
                           "{} reaches: check the structure and the time step", atom->tag[i], atom->tag[j],
                           std::sqrt(r2), update->ntimestep, loaded.path);
        }
    error->one(FLERR, "pair_style dphpc: two atoms are nearer than the table of {} reaches at step {}", loaded.path,
               update->ntimestep);
}

// ------------------------------------------------------------------ several models

void PairDphpc::write_deviation(const dphpc::Results& first) {
    std::vector<dphpc::ModelResults> of_models;
    for (std::size_t m = 0; m < models_.size(); ++m) {
        dphpc::Results results{};
        if (m == 0) {
            results = first;
        } else {
            forces_[m].assign(3 * types_.size(), 0.0);
            results.forces = forces_[m].data();
            evaluate(models_[m], results);
        }
        sent_ = forces_[m].data();
        comm->reverse_comm(this);
        if (unit_ != 1.0)
            for (double& value : forces_[m]) value *= unit_;
        dphpc::ModelResults result{forces_[m].data(), {}};
        for (int k = 0; k < 9; ++k) result.virial[k] = unit_ * results.virial[k];
        of_models.push_back(result);
    }
    sent_ = nullptr;
    dphpc::Atoms atoms{atom->nlocal, {}, atom->natoms};
    if (measure_.atomic) atoms.ids.assign(atom->tag, atom->tag + atom->nlocal);
    const std::vector<double> row = dphpc::deviation_of(of_models, atoms, measure_, world);
    if (comm->me == 0 && !deviation_.write(update->ntimestep, row, new_lines_))
        error->one(FLERR, "pair_style dphpc: cannot write {}: check space and permissions", out_file_);
    new_lines_ = false;
}

int PairDphpc::pack_reverse_comm(int n, int first, double* buffer) {
    std::copy_n(sent_ + 3 * static_cast<std::size_t>(first), 3 * n, buffer);
    return 3 * n;
}

void PairDphpc::unpack_reverse_comm(int n, int* list, double* buffer) {
    for (int k = 0; k < n; ++k)
        for (int a = 0; a < 3; ++a) sent_[3 * static_cast<std::size_t>(list[k]) + a] += buffer[3 * k + a];
}

double PairDphpc::memory_usage() {
    double bytes = Pair::memory_usage();
    bytes += static_cast<double>(types_.capacity() * sizeof(std::int32_t) + offsets_.capacity() * sizeof(std::int64_t) +
                                 indices_.capacity() * sizeof(std::int32_t));
    bytes += static_cast<double>((energies_.capacity() + virials_.capacity()) * sizeof(double));
    for (const auto& forces : forces_) bytes += static_cast<double>(forces.capacity() * sizeof(double));
    return bytes;
}

// Creates the pair style for plugin.cpp, which does not include the class, as this is compiled for the instruction set.
void* make_pair_dphpc(LAMMPS* lmp) { return static_cast<Pair*>(new PairDphpc(lmp)); }
