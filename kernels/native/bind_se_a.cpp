// Bindings of the se_a operations.

#include "bind.h"
#include "se_a.h"

namespace dphpc {
namespace {

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
                data(atom_virial));
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

}  // namespace

template <class Real>
void bind_se_a(nb::module_& m) {
    m.def("moments", &bind_moments<Real>);
    m.def("forces_into", &bind_forces_into<Real>, "env"_a, "p"_a, "e"_a, "threads"_a, "moments_adjoint"_a,
          "forces"_a.noconvert(), "center_virial"_a.noconvert(), "atom_virial"_a.noconvert().none());
    m.def("tangent", &bind_tangent<Real>);
    m.def("tangent_adjoint", &bind_tangent_adjoint<Real>);
    m.def("features", &bind_features<Real>);
}

template void bind_se_a<double>(nb::module_&);
template void bind_se_a<float>(nb::module_&);

}  // namespace dphpc
