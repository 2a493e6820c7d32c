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

struct ModelResults {
    const double* forces;  // (n_local, 3) eV/Å, those of ghosts sent home
    double virial[9];      // eV, this rank's share
};

// max, min and avg of the virial's deviation in eV per atom, then of the forces' in eV/Å; for all ranks together.
std::vector<double> deviation_of(const std::vector<ModelResults>& models, std::int64_t n_local, std::int64_t n_atoms,
                                 MPI_Comm world);

class DeviationFile {
  public:
    DeviationFile() = default;
    ~DeviationFile() { close(); }
    DeviationFile(const DeviationFile&) = delete;
    DeviationFile& operator=(const DeviationFile&) = delete;

    bool open(const std::string& path);  // with the line that names the columns
    bool write(std::int64_t step, const std::vector<double>& row);
    void close();

  private:
    std::FILE* file_ = nullptr;
};

}  // namespace dphpc
