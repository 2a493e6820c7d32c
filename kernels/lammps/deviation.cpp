#include "deviation.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dphpc {
namespace {

// Root mean square about the mean of value(k), k = 0 … n − 1.
template <class Value>
double spread(std::size_t n, Value&& value) {
    double mean = 0.0, squares = 0.0;
    for (std::size_t k = 0; k < n; ++k) mean += value(k) / n;
    for (std::size_t k = 0; k < n; ++k) squares += (value(k) - mean) * (value(k) - mean) / n;
    return std::sqrt(squares);
}

}  // namespace

std::vector<double> deviation_of(const std::vector<ModelResults>& models, std::int64_t n_local, std::int64_t n_atoms,
                                 MPI_Comm world) {
    const std::size_t n = models.size();
    double high = 0.0, low = std::numeric_limits<double>::infinity();
    std::vector<double> sums(9 * n + 1, 0.0);  // virials, and the deviations of the forces
    for (std::int64_t i = 0; i < n_local; ++i) {
        double squares = 0.0;
        for (int a = 0; a < 3; ++a) {
            const double s = spread(n, [&](std::size_t k) { return models[k].forces[3 * i + a]; });
            squares += s * s;
        }
        const double deviation = std::sqrt(squares);
        high = std::max(high, deviation), low = std::min(low, deviation);
        sums.back() += deviation;
    }
    for (std::size_t k = 0; k < n; ++k) std::copy_n(models[k].virial, 9, sums.begin() + 9 * k);
    MPI_Allreduce(MPI_IN_PLACE, sums.data(), static_cast<int>(sums.size()), MPI_DOUBLE, MPI_SUM, world);
    MPI_Allreduce(MPI_IN_PLACE, &high, 1, MPI_DOUBLE, MPI_MAX, world);
    MPI_Allreduce(MPI_IN_PLACE, &low, 1, MPI_DOUBLE, MPI_MIN, world);
    double virial[9], squares = 0.0;
    for (int c = 0; c < 9; ++c) {
        virial[c] = spread(n, [&](std::size_t k) { return sums[9 * k + c] / n_atoms; });
        squares += virial[c] * virial[c];
    }
    return {*std::max_element(virial, virial + 9), *std::min_element(virial, virial + 9), std::sqrt(squares) / 3.0,
            high, low, sums.back() / n_atoms};
}

bool DeviationFile::open(const std::string& path) {
    close();
    file_ = std::fopen(path.c_str(), "w");
    if (!file_) return false;
    std::fprintf(file_, "#%11s", "step");
    for (const char* name : {"max_devi_v", "min_devi_v", "avg_devi_v", "max_devi_f", "min_devi_f", "avg_devi_f"})
        std::fprintf(file_, "%19s", name);
    std::fputc('\n', file_);
    return std::fflush(file_) == 0;
}

bool DeviationFile::write(std::int64_t step, const std::vector<double>& row) {
    std::fprintf(file_, "%12lld", static_cast<long long>(step));
    for (const double value : row) std::fprintf(file_, "%19.6e", value);
    std::fputc('\n', file_);
    return std::fflush(file_) == 0 && !std::ferror(file_);
}

void DeviationFile::close() {
    if (file_) std::fclose(file_);
    file_ = nullptr;
}

}  // namespace dphpc
