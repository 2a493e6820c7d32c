#include "model.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "exact_sum.h"
#include "grid_parts.h"

namespace dphpc {
namespace {

constexpr std::int64_t most_types = 1000, widest = 1 << 20;

// The numbers of an array, after a check that all are finite.
template <class T>
const T* finite(const ModelFile& file, const std::string& name, const ArrayView<T>& array) {
    for (std::int64_t k = 0; k < array.size; ++k)
        if (!std::isfinite(array.data[k])) file.fail("'" + name + "' holds a number that is not finite");
    return array.data;
}

template <class T>
const T* finite(const ModelFile& file, const std::string& name, const std::vector<std::int64_t>& shape) {
    return finite(file, name, file.array<T>(name, shape));
}

// The layers of a net, from which a `PackedNet` is made, with weights in the precision of the computation.
template <class Real>
class Layers {
  public:
    Layers(const ModelFile& file, const std::string& net, int n_inputs) {
        const std::vector<std::string> kinds = file.words(net + ".activations");
        if (kinds.empty() || kinds.size() % 2) file.fail("'" + net + ".activations' is not a list of names and numbers");
        const int n_layers = static_cast<int>(kinds.size()) / 2;
        const ArrayView<std::int32_t> skips = file.array<std::int32_t>(net + ".skips", {n_layers});
        kept_.reserve(3 * n_layers);
        std::int64_t width = n_inputs;
        for (int l = 0; l < n_layers; ++l) {
            const std::string name = net + "." + std::to_string(l);
            const ArrayView<double> w = file.array<double>(name + ".w", {width, any});
            const std::int64_t n_out = w.shape[1];
            const int skip = skips.data[l];
            if (n_out < 1 || n_out > widest || skip < 0 || skip > 2 || (skip > 0 && skip * width != n_out))
                file.fail("layer " + std::to_string(l) + " of '" + net + "' does not fit its inputs");
            views.push_back({keep(file, name + ".w", {width, n_out}), vector(file, name + ".b", n_out),
                             vector(file, name + ".idt", n_out), static_cast<int>(width), static_cast<int>(n_out), skip,
                             activation(file, kinds[2 * l], kinds[2 * l + 1])});
            width = n_out;
        }
        if (width != 1) file.fail("'" + net + "' has " + std::to_string(width) + " outputs, expected 1");
    }

    std::vector<LayerView<Real>> views;

  private:
    const Real* keep(const ModelFile& file, const std::string& name, const std::vector<std::int64_t>& shape) {
        const ArrayView<double> given = file.array<double>(name, shape);
        finite(file, name, given);
        kept_.emplace_back(given.data, given.data + given.size);
        return kept_.back().data();
    }
    const Real* vector(const ModelFile& file, const std::string& name, std::int64_t n) {
        return file.has(name) ? keep(file, name, {n}) : nullptr;
    }
    static Activation activation(const ModelFile& file, const std::string& name, const std::string& threshold) {
        try {
            return activation_of(name, std::stod(threshold));
        } catch (const std::exception&) {
            file.fail("the plugin knows no activation function '" + name + " " + threshold + "'");
        }
    }

    std::vector<std::vector<Real>> kept_;
};

template <class Real>
class ModelOf : public Model {
  public:
    ModelOf(const ModelFile& file, const ModelSettings& settings);

    void set_fparam(const std::vector<double>& fparam) override;
    Trouble evaluate(System system, const std::vector<std::vector<std::int32_t>>& centers, int threads,
                     Results& results) override;
    const std::int32_t* sel() const override { return sel_.data(); }
    bool mixed_sel() const override { return mixed_sel_; }
    bool is_too_near(int center, int other, double r) const override {
        if (!(d_.flags[center * d_.n_types + other] & used)) return false;
        const double s = radial_parts(r, d_.cut).s;
        return !((s - d_.davg[center]) / d_.dstd[2 * center] <= upper_);
    }

  private:
    void read_descriptor(const ModelFile& file);
    void read_table(const ModelFile& file, const std::string& table, const char* coefficients, int n_types);
    double vacuum(int type) const;

    Descriptor<Real> d_{};
    std::vector<std::int32_t> sel_, network_;
    bool mixed_sel_ = false;
    std::vector<std::uint8_t> flags_, has_energy_, subtracts_vacuum_;
    std::vector<double> davg_, dstd_, bias_, shift_, fparam_avg_, fparam_inv_std_;
    std::vector<Real> coefficients_, empty_;
    double upper_ = std::numeric_limits<double>::infinity();  // the largest s̃ that every table covers
    std::vector<PackedNet<Real>> nets_;
    std::vector<Real> row_, columns_;  // the nets' other inputs: for one atom, and repeated for many
    std::vector<double> energies_;
};

template <class T>
std::vector<T> copy_of(const ArrayView<T>& array) {
    return {array.data, array.data + array.size};
}

std::vector<std::uint8_t> narrowed(const ArrayView<std::int32_t>& array) {
    return {array.data, array.data + array.size};
}

template <class Real>
void ModelOf<Real>::read_descriptor(const ModelFile& file) {
    const std::int64_t n = d_.n_types;
    const double* cut = finite<double>(file, "cut", {3});
    if (!(cut[0] > cut[1] && cut[1] >= 0.0)) file.fail("the cutoff does not lie beyond where the switch begins");
    d_.cut = {cut[0], cut[1], cut[2], 1.0 / (cut[0] - cut[1])};
    d_.scale = *finite<double>(file, "scale", {1});
    sel_ = copy_of(file.array<std::int32_t>("sel", {n}));
    mixed_sel_ = file.has("mixed_sel");
    network_ = copy_of(file.array<std::int32_t>("network", {n, n}));
    flags_ = narrowed(file.array<std::int32_t>("flags", {n, n}));
    const double *davg = finite<double>(file, "davg", {n}), *dstd = finite<double>(file, "dstd", {n, 2});
    davg_.assign(davg, davg + n), dstd_.assign(dstd, dstd + 2 * n);
    for (const double value : dstd_)
        if (!(value > 0.0)) file.fail("'dstd' holds a number that is not positive");
    d_.sel = sel_.data(), d_.network = network_.data(), d_.flags = flags_.data();
    d_.davg = davg_.data(), d_.dstd = dstd_.data();
    d_.round_displacements = false;
}

template <class Real>
void ModelOf<Real>::read_table(const ModelFile& file, const std::string& table, const char* coefficients, int n_types) {
    constexpr int most_parts = RadialGrid::most_parts, n_numbers = 2 + 2 * most_parts;
    const ArrayView<double> grids = file.array<double>(table + ".grids", {any, n_numbers});
    finite(file, table + ".grids", grids);
    const std::int64_t n_tables = grids.shape[0];
    const ArrayView<Real> c = file.array<Real>(coefficients, {n_tables, any, n_powers, any});
    if (c.shape[1] < 1 || c.shape[1] > widest || c.shape[3] < 1 || c.shape[3] > widest)
        file.fail(std::string("'") + coefficients + "' is empty or too large");
    finite(file, coefficients, c);
    coefficients_ = copy_of(c);
    d_.n_intervals = static_cast<int>(c.shape[1]), d_.channels = static_cast<int>(c.shape[3]);
    d_.coefficients = coefficients_.data();
    for (std::int64_t i = 0; i < n_tables; ++i) {
        const double* g = grids.data + n_numbers * i;  // upper, lower, step and number of intervals of each part
        double starts[most_parts], steps[most_parts], start = g[1];
        int counts[most_parts], n_parts = 0, left = d_.n_intervals;
        for (; n_parts < most_parts && (n_parts == 0 || g[3 + 2 * n_parts] > 0.0); ++n_parts) {
            const double step = g[2 + 2 * n_parts], n = g[3 + 2 * n_parts];
            if (!(step > 0.0 && n >= 1 && n == std::floor(n) && n <= static_cast<double>(left)))
                file.fail("grid " + std::to_string(i) + " of '" + table + "' does not fit its coefficients");
            starts[n_parts] = start, steps[n_parts] = step, counts[n_parts] = static_cast<int>(n);
            start += step * n, left -= counts[n_parts];
        }
        d_.grids.push_back(grid_of_parts(n_parts, starts, steps, counts));
        upper_ = std::min(upper_, g[0]);
    }
    for (const std::int32_t which : network_)
        if (which < 0 || which >= n_tables) file.fail("'network' names a table that is not there");
    const ArrayView<Real> empty = file.array<Real>(table + ".empty", {n_types, n_types, d_.channels});
    finite(file, table + ".empty", empty);
    empty_ = copy_of(empty);
    d_.empty = empty_.data();
}

template <class Real>
ModelOf<Real>::ModelOf(const ModelFile& file, const ModelSettings& settings) {
    const std::int64_t n = settings.n_types();
    d_.n_types = settings.n_types();
    read_descriptor(file);
    const bool single = std::is_same_v<Real, float>;
    const std::string table = single ? "table32" : "table64";
    read_table(file, table, (table + ".coefficients").c_str(), d_.n_types);
    const double* bias = finite<double>(file, "energy_bias", {n});
    bias_.assign(bias, bias + n), shift_ = bias_;
    has_energy_ = narrowed(file.array<std::int32_t>("has_energy", {n}));
    subtracts_vacuum_ = narrowed(file.array<std::int32_t>("subtracts_vacuum", {n}));
    const int n_columns = settings.numb_fparam;
    const double* average = finite<double>(file, "fparam_avg", {n_columns});
    const double* inverse = finite<double>(file, "fparam_inv_std", {n_columns});
    fparam_avg_.assign(average, average + n_columns), fparam_inv_std_.assign(inverse, inverse + n_columns);
    row_.assign(n_columns, Real(0));
    const int axis = file.array<std::int32_t>("axis", {1}).data[0];
    if (axis < 1 || axis > d_.channels) file.fail("'axis' is not between 1 and the number of channels");
    nets_.reserve(n);
    for (int t = 0; t < d_.n_types; ++t) {
        const Layers<Real> layers(file, "fitting." + std::to_string(t), d_.channels * axis + n_columns);
        nets_.emplace_back(layers.views, d_.channels, axis);
    }
    if (n_columns == 0) set_fparam({});
}

template <class Real>
void ModelOf<Real>::set_fparam(const std::vector<double>& fparam) {
    for (std::size_t k = 0; k < row_.size(); ++k)
        row_[k] = static_cast<Real>((fparam[k] - fparam_avg_[k]) * fparam_inv_std_[k]);
    columns_.clear();
    for (int t = 0; t < d_.n_types; ++t) shift_[t] = bias_[t] - (subtracts_vacuum_[t] ? vacuum(t) : 0.0);
}

// The net's output for an atom without neighbors.
template <class Real>
double ModelOf<Real>::vacuum(int type) const {
    const std::vector<Real> moments(n_rows * d_.channels, Real(0));
    std::vector<Real> adjoint(moments.size());
    FittingTile<Real> tile;
    tile.n = 1;
    tile.inputs = {moments.data(), row_.empty() ? nullptr : row_.data()};
    tile.moments_adjoint = adjoint.data();
    dphpc::evaluate(nets_[type], tile);
    return tile.value.back()[0];
}

template <class Real>
Trouble ModelOf<Real>::evaluate(System system, const std::vector<std::vector<std::int32_t>>& centers, int threads,
                                Results& results) {
    ExactSum energy;
    std::vector<double> virial(ExactSum::parts * 9, 0.0);
    for (int t = 0; t < d_.n_types; ++t) {
        const std::vector<std::int32_t>& own = centers[t];
        if (!has_energy_[t] || own.empty()) continue;
        system.centers = own.data(), system.n_centers = static_cast<std::int64_t>(own.size());
        energies_.resize(own.size());
        for (std::size_t k = columns_.size(); k < own.size() * row_.size(); ++k)
            columns_.push_back(row_[k % row_.size()]);
        const double largest =
            energy_and_forces(system, d_, nets_[t], row_.empty() ? nullptr : columns_.data(), threads,
                              {energies_.data(), results.forces, virial.data(), results.atom_virials, 0.0});
        if (largest > upper_) return {Trouble::too_near, -1};
        for (std::size_t i = 0; i < own.size(); ++i) {
            const double value = energies_[i] + shift_[t];
            if (!std::isfinite(value)) return {Trouble::not_finite, own[i]};
            if (results.atom_energies) results.atom_energies[own[i]] += value;
            energy.add(value);
        }
    }
    for (int part = ExactSum::parts; part-- > 0;) {
        results.energy += energy.part[part];
        for (int k = 0; k < 9; ++k) results.virial[k] += virial[9 * part + k];
    }
    return {};
}

}  // namespace

ModelSettings::ModelSettings(const ModelFile& file)
    : type_map(file.words("type_map")), rcut(file.array<double>("cut", {3}).data[0]) {
    if (type_map.empty() || type_map.size() > most_types || !(rcut > 0.0 && std::isfinite(rcut)))
        file.fail("its types or its cutoff are not sensible");
    const std::int64_t n = file.array<double>("fparam_avg", {any}).size;
    if (n > widest) file.fail("too many frame parameters");
    numb_fparam = static_cast<int>(n);
    if (file.has("default_fparam")) {
        const ArrayView<double> given = file.array<double>("default_fparam", {n});
        default_fparam.assign(given.data, given.data + n);
    }
}

std::unique_ptr<Model> model_of(const ModelFile& file, const ModelSettings& settings, bool single) {
    if (single) return std::make_unique<ModelOf<float>>(file, settings);
    return std::make_unique<ModelOf<double>>(file, settings);
}

}  // namespace dphpc
