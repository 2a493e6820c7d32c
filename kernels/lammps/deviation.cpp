#include "deviation.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dphpc {
namespace {

// Mean of value(k), k = 0 … n − 1.
template <class Value>
double mean(std::size_t n, Value&& value) {
    double sum = 0.0;
    for (std::size_t k = 0; k < n; ++k) sum += value(k) / n;
    return sum;
}

// Standard deviation of value(k), k = 0 … n − 1.
template <class Value>
double spread(std::size_t n, Value&& value) {
    const double m = mean(n, value);
    double squares = 0.0;
    for (std::size_t k = 0; k < n; ++k) squares += (value(k) - m) * (value(k) - m) / n;
    return std::sqrt(squares);
}

// Deviation (n_local) of the force on each atom; `level` is `Measure::relative`.
std::vector<double> force_deviation(const std::vector<ModelResults>& models, std::int64_t n_local, double level) {
    std::vector<double> deviations(static_cast<std::size_t>(n_local));
    for (std::int64_t i = 0; i < n_local; ++i) {
        double squares = 0.0, magnitude = 0.0;
        for (int a = 0; a < 3; ++a) {
            const auto value = [&](std::size_t k) { return models[k].forces[3 * i + a]; };
            const double s = spread(models.size(), value), m = mean(models.size(), value);
            squares += s * s, magnitude += m * m;
        }
        deviations[i] = std::sqrt(squares) / (level < 0.0 ? 1.0 : std::sqrt(magnitude) + level);
    }
    return deviations;
}

// Values of all ranks' atoms, sorted by id, on the first rank.
std::vector<double> by_id(const std::vector<long long>& ids, const std::vector<double>& values, MPI_Comm world) {
    int me = 0, n_ranks = 1, n = static_cast<int>(values.size());
    MPI_Comm_rank(world, &me);
    MPI_Comm_size(world, &n_ranks);
    std::vector<int> counts(n_ranks), first(n_ranks, 0);
    MPI_Gather(&n, 1, MPI_INT, counts.data(), 1, MPI_INT, 0, world);
    if (me == 0)
        for (int k = 1; k < n_ranks; ++k) first[k] = first[k - 1] + counts[k - 1];
    const std::size_t n_all = me == 0 ? static_cast<std::size_t>(first.back() + counts.back()) : 0;
    std::vector<long long> all_ids(n_all);
    std::vector<double> all(n_all), sorted(n_all);
    MPI_Gatherv(ids.data(), n, MPI_LONG_LONG, all_ids.data(), counts.data(), first.data(), MPI_LONG_LONG, 0, world);
    MPI_Gatherv(values.data(), n, MPI_DOUBLE, all.data(), counts.data(), first.data(), MPI_DOUBLE, 0, world);
    std::vector<std::size_t> order(n_all);
    for (std::size_t k = 0; k < n_all; ++k) order[k] = k;
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return all_ids[a] < all_ids[b]; });
    for (std::size_t k = 0; k < n_all; ++k) sorted[k] = all[order[k]];
    return sorted;
}

}  // namespace

std::vector<double> deviation_of(const std::vector<ModelResults>& models, const Atoms& atoms, const Measure& measure,
                                 MPI_Comm world) {
    const std::size_t n = models.size();
    const std::vector<double> of_atoms = force_deviation(models, atoms.n_local, measure.relative);
    double high = 0.0, low = std::numeric_limits<double>::infinity();
    std::vector<double> sums(9 * n + 1, 0.0);  // virials of the models, then the deviation of the forces
    for (const double deviation : of_atoms) {
        high = std::max(high, deviation), low = std::min(low, deviation);
        sums.back() += deviation;
    }
    for (std::size_t k = 0; k < n; ++k) std::copy_n(models[k].virial, 9, sums.begin() + 9 * k);
    MPI_Allreduce(MPI_IN_PLACE, sums.data(), static_cast<int>(sums.size()), MPI_DOUBLE, MPI_SUM, world);
    MPI_Allreduce(MPI_IN_PLACE, &high, 1, MPI_DOUBLE, MPI_MAX, world);
    MPI_Allreduce(MPI_IN_PLACE, &low, 1, MPI_DOUBLE, MPI_MIN, world);
    double virial[9], squares = 0.0;
    for (int c = 0; c < 9; ++c) {
        const auto value = [&](std::size_t k) { return sums[9 * k + c] / atoms.n_all_ranks; };
        virial[c] = spread(n, value);
        if (measure.relative_v >= 0.0) virial[c] /= std::abs(mean(n, value)) + measure.relative_v;
        squares += virial[c] * virial[c];
    }
    std::vector<double> row{*std::max_element(virial, virial + 9), *std::min_element(virial, virial + 9),
                            std::sqrt(squares) / 3.0, high, low, sums.back() / atoms.n_all_ranks};
    if (measure.atomic) {
        const std::vector<double> each = by_id(atoms.ids, of_atoms, world);
        row.insert(row.end(), each.begin(), each.end());
    }
    return row;
}

bool DeviationFile::open(const std::string& path, bool atomic) {
    close();
    file_ = std::fopen(path.c_str(), "w");
    if (!file_) return false;
    std::fprintf(file_, "#%11s", "step");
    for (const char* name : {"max_devi_v", "min_devi_v", "avg_devi_v", "max_devi_f", "min_devi_f", "avg_devi_f"})
        std::fprintf(file_, "%19s", name);
    if (atomic) std::fprintf(file_, "%19s", "atm_devi_f(N)");
    std::fputc('\n', file_);
    return std::fflush(file_) == 0;
}

bool DeviationFile::write(std::int64_t step, const std::vector<double>& row, bool first) {
    const auto alike = [](double a, double b) { return std::abs(a - b) <= 1e-5 * std::abs(b) + 1e-12; };
    const bool again = step == step_ && begin_ >= 0;
    if (again && (!first || std::equal(row.begin(), row.end(), row_.begin(), row_.end(), alike)))
        std::fseek(file_, begin_, SEEK_SET);
    step_ = step, row_ = row, begin_ = std::ftell(file_);
    std::fprintf(file_, "%12lld", static_cast<long long>(step));
    for (const double value : row) std::fprintf(file_, "%19.6e", value);
    std::fputc('\n', file_);
    return std::fflush(file_) == 0 && !std::ferror(file_);
}

void DeviationFile::close() {
    if (file_) std::fclose(file_);
    file_ = nullptr, step_ = -1, begin_ = -1;
}

}  // namespace dphpc
