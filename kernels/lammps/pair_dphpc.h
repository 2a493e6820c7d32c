// pair_style dphpc: a model of dphpc as a pair style of LAMMPS; docs/lammps.md describes its use.
//
// LAMMPS provides atoms, ghosts and neighbors.  The pair style sorts the neighbors as the kernels require whenever
// LAMMPS has rebuilt its list, and leaves it to LAMMPS to send forces on ghosts back to their owners.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "deviation.h"
#include "model.h"
#include "pair.h"

namespace LAMMPS_NS {

class PairDphpc : public Pair {
  public:
    explicit PairDphpc(LAMMPS* lmp);
    ~PairDphpc() override;

    void settings(int narg, char** arg) override;
    void coeff(int narg, char** arg) override;
    void init_style() override;
    double init_one(int i, int j) override;
    void compute(int eflag, int vflag) override;
    void* extract(const char* name, int& dimensions) override;
    double memory_usage() override;

    int pack_reverse_comm(int n, int first, double* buffer) override;
    void unpack_reverse_comm(int n, int* list, double* buffer) override;

  private:
    struct Loaded {
        std::string path;
        dphpc::ModelSettings settings;
        std::unique_ptr<dphpc::Model> model;
    };

    void read_models(const std::vector<std::string>& paths, bool single, const std::vector<double>& fparam);
    dphpc::Bytes read_on_all(const std::string& path);
    void open_deviation();
    void forget_types();
    void look_at_list();
    bool has_other_types() const;
    int mask_of_absent() const;
    double scale() const;
    void take_list();
    void order_row(int i, const int* neighbors, int n);
    void look_over();
    void evaluate(Loaded& loaded, dphpc::Results& results);
    void evaluate_first(bool with_deviation);
    void write_deviation(const dphpc::Results& first);
    void take_results(const dphpc::Results& results);
    [[noreturn]] void too_near(const Loaded& loaded);
    dphpc::System system() const;

    std::vector<Loaded> models_;
    int threads_ = 0;  // threads per rank; 0: as many as LAMMPS has
    int out_freq_ = 100;
    std::string out_file_ = "model_devi.out";
    dphpc::Measure measure_;
    dphpc::DeviationFile deviation_;
    bool looked_over_ = false;
    bool new_run_ = true;      // nothing has been evaluated since init
    bool new_lines_ = true;    // no line of deviations has been written since init
    double unit_ = 1.0;        // LAMMPS' energy unit per eV
    double factor_ = 1.0;      // factor of energies, forces and virials: unit_ times the scale of `fix adapt`
    double** scale_ = nullptr; // (n_types + 1, n_types + 1), which `fix adapt` may change, all to the same number

    std::vector<int> type_of_;          // the model's type of each of LAMMPS' types; −1 where it does not act
    std::vector<std::int32_t> types_;   // (n_all)
    std::vector<std::int64_t> offsets_; // (n_local + 1)
    std::vector<std::int32_t> indices_;
    std::vector<std::vector<std::int32_t>> centers_;  // centers of each type
    std::vector<std::int64_t> place_;                 // where the next neighbor of each type goes
    std::vector<double> energies_, virials_;
    std::vector<std::vector<double>> forces_;  // forces of each model, unless they go into LAMMPS' array
    double* sent_ = nullptr;                   // forces whose ghost part is being sent back to the owners
};

}  // namespace LAMMPS_NS
