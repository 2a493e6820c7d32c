// Bindings of the fitting net, alone and between descriptor and forces.

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "energy.h"
#include "fitting_tape.h"

namespace dphpc {
namespace {

// w (n_in, n_out), b and idt (n_out) or None, activation and its threshold, copies of the input that are added.
template <class Real>
using LayerArrays = std::tuple<Array<const Real>, std::optional<Array<const Real>>, std::optional<Array<const Real>>,
                               std::string, double, int>;

template <class Real>
using Layers = std::vector<LayerArrays<Real>>;

const auto data = [](const auto& array) { return array ? array->data() : nullptr; };

template <class Real>
std::vector<LayerView<Real>> views_of(const Layers<Real>& layers) {
    std::vector<LayerView<Real>> views;
    for (const auto& [w, b, idt, name, threshold, skip] : layers)
        views.push_back({w.data(), data(b), data(idt), static_cast<int>(w.shape(0)), static_cast<int>(w.shape(1)), skip,
                         activation_of(name, threshold)});
    return views;
}

// A net without features, on inputs (n, n_in): energies (n) and adjoint (n, n_in) are set.
template <class Real>
void bind_evaluate(const PackedNet<Real>& net, Array<const Real> inputs, Array<Real> energies, Array<Real> adjoint) {
    nb::gil_scoped_release release;
    FittingTile<Real> tile;
    constexpr std::int64_t size = 64;
    const auto n = static_cast<std::int64_t>(inputs.shape(0));
    for (std::int64_t first = 0; first < n; first += size) {
        tile.n = static_cast<int>(std::min(size, n - first));
        tile.inputs.columns = inputs.data() + first * net.n_columns;
        tile.columns_adjoint = adjoint.data() + first * net.n_columns;
        evaluate(net, tile);
        for (int i = 0; i < tile.n; ++i)
            energies.data()[first + i] = tile.value.back()[static_cast<std::size_t>(i) * net.layers.back().step()];
    }
}

template <class Real>
void bind_energy_and_adjoint(FittingTape<Real>& tape, Array<const Real> moments, std::optional<Array<const Real>> columns,
                             int threads, Array<Real> energies, Array<Real> moments_adjoint) {
    nb::gil_scoped_release release;
    tape.energy_and_adjoint({moments.data(), data(columns)}, static_cast<std::int64_t>(moments.shape(0)), threads,
                            energies.data(), moments_adjoint.data());
}

// Gradients by w, b and idt of each layer; None where they are not wanted.
template <class Real>
using GradientArrays =
    std::tuple<std::optional<Array<Real>>, std::optional<Array<Real>>, std::optional<Array<Real>>>;

template <class Real>
void bind_gradient(FittingTape<Real>& tape, Array<const Real> seeds, Array<const Real> tangent, int threads,
                   const std::vector<GradientArrays<Real>>& arrays, bool add, Array<Real> moments_bar) {
    std::vector<LayerGradient<Real>> gradients;
    for (const auto& [w, b, idt] : arrays) gradients.push_back({data(w), data(b), data(idt)});
    nb::gil_scoped_release release;
    tape.gradient(seeds.data(), tangent.data(), threads, gradients, add, moments_bar.data());
}

template <class Real>
double bind_energy_and_forces(nb::handle env, nb::handle p, nb::handle e, const PackedNet<Real>& net,
                              std::optional<Array<const Real>> columns, int threads, Array<double> energies,
                              Array<double> forces, Array<double> virial, std::optional<Array<double>> atom_virial) {
    const SystemArrays system(env);
    const DescriptorArrays<Real> d(p, e);
    nb::gil_scoped_release release;
    return energy_and_forces(
        system.view(), d.view, net, data(columns), threads,
        {energies.data(), forces.data(), virial.data(), data(atom_virial)});
}

template <class Real>
void bind_precision(nb::handle sub) {
    nb::module_ m = nb::borrow<nb::module_>(sub);
    nb::class_<PackedNet<Real>>(m, "PackedNet")
        .def("__init__",
             [](PackedNet<Real>* self, const Layers<Real>& layers, int channels, int axis) {
                 new (self) PackedNet<Real>(views_of(layers), channels, axis);
             })
        .def("evaluate", &bind_evaluate<Real>, "inputs"_a, "energies"_a.noconvert(), "adjoint"_a.noconvert());
    nb::class_<FittingTape<Real>>(m, "FittingTape")
        .def("__init__",
             [](FittingTape<Real>* self, const Layers<Real>& layers, int channels, int axis) {
                 new (self) FittingTape<Real>(views_of(layers), channels, axis);
             })
        .def("repack",
             [](FittingTape<Real>& tape, const Layers<Real>& layers, int threads) {
                 tape.repack(views_of(layers), threads);
             })
        .def("energy_and_adjoint", &bind_energy_and_adjoint<Real>, "moments"_a, "columns"_a.none(), "threads"_a,
             "energies"_a.noconvert(), "moments_adjoint"_a.noconvert())
        .def("gradient", &bind_gradient<Real>);
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
