// How far several models disagree: a file with the columns of DeePMD-kit's model_devi.out.
//
// Zhang et al., Phys. Rev. Mater. 3, 023804 (2019), Eq. (4): the deviation of a force is the norm over x, y, z of its
// standard deviation over the models.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace dphpc {

// What is written, as DeePMD-kit's pair style has it.
struct Measure {
    double relative = -1.0;    // if not below 0: divide an atom's deviation by the norm of its mean force plus this
    double relative_v = -1.0;  // and that of each of the virial's components by its mean's magnitude plus this
    bool atomic = false;       // each atom's deviation, too
};

struct ModelResults {
    const double* forces;  // (n_local, 3), those of ghosts sent home
    double virial[9];      // this rank's share
};

// This rank's atoms.
struct Atoms {
    std::int64_t n_local;
    std::vector<long long> ids;  // (n_local), or empty where they are not asked for
    std::int64_t n_all_ranks;
};

// max, min and avg of the virial's deviation per atom, then of the forces', in the units of the models' results; for all
// ranks together.  Then, if `atomic`, each atom's by its id, on the first rank alone.
std::vector<double> deviation_of(const std::vector<ModelResults>& models, const Atoms& atoms, const Measure& measure,
                                 MPI_Comm world);

class DeviationFile {
  public:
    DeviationFile() = default;
    ~DeviationFile() { close(); }
    DeviationFile(const DeviationFile&) = delete;
    DeviationFile& operator=(const DeviationFile&) = delete;

    bool open(const std::string& path, bool atomic);  // with the line that names the columns
    // Of structures that a run tries at one step, the last stays; `first` is the first line of a run, which replaces the
    // last one of the run before only if it says the same.
    bool write(std::int64_t step, const std::vector<double>& row, bool first);
    void close();

  private:
    std::FILE* file_ = nullptr;
    std::int64_t step_ = -1;   // of the last line
    std::vector<double> row_;  // what it says
    long begin_ = -1;          // where it begins, −1 where that is not known
};

}  // namespace dphpc
