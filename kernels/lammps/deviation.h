// The deviation of several models, and a file of it with the columns of DeePMD-kit's model_devi.out.
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

// What is computed and written, with the options of DeePMD-kit's pair style.
struct Measure {
    double relative = -1.0;    // if ≥ 0: divide an atom's deviation by the norm of its mean force plus this
    double relative_v = -1.0;  // if ≥ 0: divide a virial component's deviation by its mean's magnitude plus this
    bool atomic = false;       // whether to write each atom's deviation, too
};

struct ModelResults {
    const double* forces;  // (n_local, 3), including the forces on their ghosts
    double virial[9];      // this rank's share
};

// This rank's atoms.
struct Atoms {
    std::int64_t n_local;
    std::vector<long long> ids;  // (n_local); empty if not needed
    std::int64_t n_all_ranks;    // number of atoms of all ranks
};

// Max, min and avg of the virial's deviation per atom, then of the forces', over all ranks, in the units of the models'
// results; then, if `atomic`, each atom's deviation in order of ids, on the first rank only.  Collective.
std::vector<double> deviation_of(const std::vector<ModelResults>& models, const Atoms& atoms, const Measure& measure,
                                 MPI_Comm world);

class DeviationFile {
  public:
    DeviationFile() = default;
    ~DeviationFile() { close(); }
    DeviationFile(const DeviationFile&) = delete;
    DeviationFile& operator=(const DeviationFile&) = delete;

    // Creates the file, with a line of column names.
    bool open(const std::string& path, bool atomic);
    // Writes a line.  If a run tries several structures at a step, only the last one's line stays.  The first line of a
    // run, `first`, replaces the previous run's line for the same step only if their values agree.
    bool write(std::int64_t step, const std::vector<double>& row, bool first);
    void close();

  private:
    std::FILE* file_ = nullptr;
    std::int64_t step_ = -1;   // step of the last line
    std::vector<double> row_;  // its values
    long begin_ = -1;          // offset of its beginning; −1 if there is none
};

}  // namespace dphpc
