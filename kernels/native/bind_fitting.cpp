// Bindings of the fitting net, alone and as a part of energies and forces.

#include "bind_layers.h"
#include "energy.h"

namespace dphpc {
namespace {

// Evaluates a net without features for inputs (n, n_in); sets energies (n) and adjoint (n, n_in).
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

// A tape and the arrays that it reads.
template <class Real>
struct BoundTape {
    Layers<Real> layers;
    FittingTape<Real> tape;
};

template <class Real>
void bind_energy_and_adjoint(BoundTape<Real>& bound, Array<const Real> moments, std::optional<Array<const Real>> columns,
                             int threads, Array<Real> energies, Array<Real> moments_adjoint) {
    nb::gil_scoped_release release;
    bound.tape.energy_and_adjoint({moments.data(), data(columns)}, static_cast<std::int64_t>(moments.shape(0)), threads,
                                  energies.data(), moments_adjoint.data());
}

template <class Real>
void bind_gradient(BoundTape<Real>& bound, Array<const Real> seeds, Array<const Real> tangent, int threads,
                   const LayerGradients<Real>& arrays, bool add, Array<Real> moments_bar) {
    const std::vector<LayerGradient<Real>> gradients = gradients_of(arrays);
    nb::gil_scoped_release release;
    bound.tape.gradient(seeds.data(), tangent.data(), threads, gradients, add, moments_bar.data());
}

template <class Real>
double bind_energy_and_forces(nb::handle env, nb::handle p, nb::handle e, const PackedNet<Real>& net,
                              std::optional<Array<const Real>> columns, int threads, Array<double> energies,
                              Array<double> forces, Array<double> virial, std::optional<Array<double>> atom_virial,
                              double force_spacing) {
    const SystemArrays system(env);
    const DescriptorArrays<Real> d(p, e);
    nb::gil_scoped_release release;
    return energy_and_forces(
        system.view(), d.view, net, data(columns), threads,
        {energies.data(), forces.data(), virial.data(), data(atom_virial), force_spacing});
}

}  // namespace

template <class Real>
void bind_fitting(nb::module_& m) {
    nb::class_<PackedNet<Real>>(m, "PackedNet")
        .def("__init__",
             [](PackedNet<Real>* self, const Layers<Real>& layers, int channels, int axis) {
                 new (self) PackedNet<Real>(views_of(layers), channels, axis);
             })
        .def("evaluate", &bind_evaluate<Real>, "inputs"_a, "energies"_a.noconvert(), "adjoint"_a.noconvert());
    nb::class_<BoundTape<Real>>(m, "FittingTape")
        .def("__init__",
             [](BoundTape<Real>* self, const Layers<Real>& layers, int channels, int axis) {
                 new (self) BoundTape<Real>{layers, {views_of(layers), channels, axis}};
             })
        .def("weights_changed", [](BoundTape<Real>& bound) { bound.tape.weights_changed(); })
        .def("energy_and_adjoint", &bind_energy_and_adjoint<Real>, "moments"_a, "columns"_a.none(), "threads"_a,
             "energies"_a.noconvert(), "moments_adjoint"_a.noconvert())
        .def("gradient", &bind_gradient<Real>, "seeds"_a, "tangent"_a, "threads"_a, "gradients"_a.noconvert(), "add"_a,
             "moments_bar"_a.noconvert());
    m.def("energy_and_forces", &bind_energy_and_forces<Real>, "env"_a, "p"_a, "e"_a, "net"_a, "columns"_a.none(),
          "threads"_a, "energies"_a.noconvert(), "forces"_a.noconvert(), "virial"_a.noconvert(),
          "atom_virial"_a.noconvert().none(), "force_spacing"_a);
}

template void bind_fitting<double>(nb::module_&);
template void bind_fitting<float>(nb::module_&);

}  // namespace dphpc
