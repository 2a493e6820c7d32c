// Bindings of the fitting net, alone and between descriptor and forces.

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "energy.h"

namespace dphpc {
namespace {

// w (n_in, n_out), b and idt (n_out) or None, activation and its threshold, copies of the input that are added.
template <class Real>
using LayerArrays = std::tuple<Array<const Real>, std::optional<Array<const Real>>, std::optional<Array<const Real>>,
                               std::string, double, int>;

template <class Real>
void make_net(FittingNet<Real>* self, const std::vector<LayerArrays<Real>>& layers, int channels, int axis) {
    std::vector<LayerView<Real>> views;
    for (const auto& [w, b, idt, name, threshold, skip] : layers) {
        const auto data = [](const auto& array) { return array ? array->data() : nullptr; };
        views.push_back({w.data(), data(b), data(idt), static_cast<int>(w.shape(0)), static_cast<int>(w.shape(1)), skip,
                         activation_of(name, threshold)});
    }
    new (self) FittingNet<Real>(views, channels, axis);
}

// A net without features, on inputs (n, n_in): energies (n) and adjoint (n, n_in) are set.
template <class Real>
void evaluate(const FittingNet<Real>& net, Array<const Real> inputs, Array<Real> energies, Array<Real> adjoint) {
    nb::gil_scoped_release release;
    FittingTile<Real> tile;
    constexpr std::int64_t size = 64;
    const auto n = static_cast<std::int64_t>(inputs.shape(0));
    for (std::int64_t first = 0; first < n; first += size) {
        tile.n = static_cast<int>(std::min(size, n - first));
        tile.columns = inputs.data() + first * net.n_columns;
        tile.columns_adjoint = adjoint.data() + first * net.n_columns;
        net.evaluate(tile);
        for (int i = 0; i < tile.n; ++i) energies.data()[first + i] = net.energy(tile, i);
    }
}

template <class Real>
double bind_energy_and_forces(nb::handle env, nb::handle p, nb::handle e, const FittingNet<Real>& net,
                              std::optional<Array<const Real>> columns, int threads, Array<double> energies,
                              Array<double> forces, Array<double> virial, std::optional<Array<double>> atom_virial) {
    const SystemArrays system(env);
    const DescriptorArrays<Real> d(p, e);
    nb::gil_scoped_release release;
    return energy_and_forces(
        system.view(), d.view, net, columns ? columns->data() : nullptr, threads,
        {energies.data(), forces.data(), virial.data(), atom_virial ? atom_virial->data() : nullptr});
}

template <class Real>
void bind_precision(nb::handle sub) {
    nb::module_ m = nb::borrow<nb::module_>(sub);
    nb::class_<FittingNet<Real>>(m, "FittingNet")
        .def("__init__", &make_net<Real>, "layers"_a, "channels"_a, "axis"_a)
        .def("evaluate", &evaluate<Real>, "inputs"_a, "energies"_a.noconvert(), "adjoint"_a.noconvert());
    m.def("energy_and_forces", &bind_energy_and_forces<Real>, "env"_a, "p"_a, "e"_a, "net"_a, "columns"_a.none(),
          "threads"_a, "energies"_a.noconvert(), "forces"_a.noconvert(), "virial"_a.noconvert(),
          "atom_virial"_a.noconvert().none());
}

}  // namespace

void bind_fitting(nb::module_& m) {
    bind_precision<double>(m.attr("float64"));
    bind_precision<float>(m.attr("float32"));
}

}  // namespace dphpc
