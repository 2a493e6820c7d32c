// Bindings of the se_a operations: they read dphpc.ops.se_a.contract's dataclasses by attribute name.

#include "bind.h"
#include "se_a.h"

namespace dphpc {
namespace {

template <class T>
Array<const T> array_of(nb::handle object, const char* name) {
    return nb::cast<Array<const T>>(object.attr(name));
}

// Views of the Python objects; the arrays are held for as long as the views live.
struct SystemArrays {
    explicit SystemArrays(nb::handle env)
        : positions(array_of<double>(env, "positions")),
          types(array_of<std::int32_t>(env, "types")),
          offsets(array_of<std::int64_t>(env.attr("neighbors"), "offsets")),
          indices(array_of<std::int32_t>(env.attr("neighbors"), "indices")),
          centers(array_of<std::int32_t>(env, "centers")) {}

    System view() const {
        return {positions.data(), types.data(),
                offsets.data(),   indices.data(),
                centers.data(),   static_cast<std::int64_t>(types.size()),
                static_cast<std::int64_t>(centers.size())};
    }

    Array<const double> positions;
    Array<const std::int32_t> types;
    Array<const std::int64_t> offsets;
    Array<const std::int32_t> indices, centers;
};

template <class Real>
struct DescriptorArrays {
    DescriptorArrays(nb::handle p, nb::handle e)
        : sel(array_of<std::int32_t>(p, "sel")),
          network(array_of<std::int32_t>(p, "network")),
          davg(array_of<double>(p, "davg")),
          dstd(array_of<double>(p, "dstd")),
          flags(array_of<std::uint8_t>(p, "flags")),
          coefficients(array_of<Real>(e.attr("table"), "coefficients")),
          empty(array_of<Real>(e, "empty")) {
        const auto number = [](nb::handle h, const char* name) { return nb::cast<double>(h.attr(name)); };
        view.cut = {number(p, "rcut"), number(p, "rcut_smth"), number(p, "protection")};
        view.scale = number(p, "scale");
        view.n_types = static_cast<int>(sel.size());
        view.n_intervals = static_cast<int>(coefficients.shape(1));
        view.channels = static_cast<int>(coefficients.shape(3));
        view.sel = sel.data(), view.davg = davg.data(), view.dstd = dstd.data();
        view.network = network.data(), view.flags = flags.data();
        view.coefficients = coefficients.data(), view.empty = empty.data();
        view.round_displacements = nb::cast<bool>(p.attr("round_displacements"));
        for (nb::handle grid : e.attr("table").attr("grids")) {
            const int n_fine = nb::cast<int>(grid.attr("n_fine")), n_coarse = nb::cast<int>(grid.attr("n_coarse"));
            view.grids.push_back({number(grid, "lower"), number(grid, "middle"), 1.0 / number(grid, "step_fine"),
                                  1.0 / number(grid, "step_coarse"), n_fine, n_coarse});
        }
    }

    Array<const std::int32_t> sel, network;
    Array<const double> davg, dstd;
    Array<const std::uint8_t> flags;
    Array<const Real> coefficients, empty;
    Descriptor<Real> view;
};

template <class Real>
double bind_moments(nb::handle env, nb::handle p, nb::handle e, int threads,
                    Array<Real> result) {
    const SystemArrays system(env);
    const DescriptorArrays<Real> d(p, e);
    nb::gil_scoped_release release;
    return moments(system.view(), d.view, threads, result.data());
}

template <class Real>
void bind_forces_into(nb::handle env, nb::handle p, nb::handle e, int threads,
                      Array<const Real> moments_adjoint, Array<double> forces, Array<double> center_virial,
                      std::optional<Array<double>> atom_virial) {
    const SystemArrays system(env);
    const DescriptorArrays<Real> d(p, e);
    nb::gil_scoped_release release;
    forces_into(system.view(), d.view, threads, moments_adjoint.data(), forces.data(), center_virial.data(),
                atom_virial ? atom_virial->data() : nullptr);
}

template <class Real>
void bind_tangent(nb::handle env, nb::handle p, nb::handle e, int threads,
                  Array<const double> direction, Array<const double> strain, Array<Real> result) {
    const SystemArrays system(env);
    const DescriptorArrays<Real> d(p, e);
    nb::gil_scoped_release release;
    tangent(system.view(), d.view, threads, direction.data(), strain.data(), result.data());
}

template <class Real>
void bind_tangent_adjoint(nb::handle env, nb::handle p, nb::handle e, int threads,
                          Array<const double> direction, Array<const double> strain, Array<const Real> moments_adjoint,
                          Array<const Real> moments_dot_adjoint, Array<double> coefficients, Array<double> empty) {
    const SystemArrays system(env);
    const DescriptorArrays<Real> d(p, e);
    nb::gil_scoped_release release;
    tangent_adjoint(system.view(), d.view, threads, direction.data(), strain.data(), moments_adjoint.data(),
                    moments_dot_adjoint.data(), coefficients.data(), empty.data());
}

template <class Real>
void bind_features(Array<const Real> moments, int axis, int threads, Array<Real> result) {
    nb::gil_scoped_release release;
    features(moments.data(), moments.shape(0), static_cast<int>(moments.shape(2)), axis, threads, result.data());
}

template <class Real>
void bind_features_adjoint(Array<const Real> moments, Array<const Real> adjoint, int axis, int threads,
                           Array<Real> result) {
    nb::gil_scoped_release release;
    features_adjoint(moments.data(), adjoint.data(), moments.shape(0), static_cast<int>(moments.shape(2)), axis,
                     threads, result.data());
}

template <class Real>
void bind_precision(nb::module_& m, const char* name) {
    nb::module_ sub = m.def_submodule(name);
    sub.def("moments", &bind_moments<Real>);
    sub.def("forces_into", &bind_forces_into<Real>, "env"_a, "p"_a, "e"_a, "threads"_a,
            "moments_adjoint"_a, "forces"_a.noconvert(), "center_virial"_a.noconvert(),
            "atom_virial"_a.noconvert().none());
    sub.def("tangent", &bind_tangent<Real>);
    sub.def("tangent_adjoint", &bind_tangent_adjoint<Real>);
    sub.def("features", &bind_features<Real>);
    sub.def("features_adjoint", &bind_features_adjoint<Real>);
}

}  // namespace

void bind_se_a(nb::module_& m) {
    bind_precision<double>(m, "float64");
    bind_precision<float>(m, "float32");
}

}  // namespace dphpc
