// Bindings of the se_a operations.

#include "bind.h"
#include "se_a_tape.h"

namespace dphpc {
namespace {

// A tape and the arrays of its batch.
template <class Real>
struct BoundSeATape {
    std::optional<SystemArrays> system;
    std::optional<Array<const std::int32_t>> owners;
    std::optional<DescriptorArrays<Real>> descriptor;
    SeATape<Real> tape;

    Images images() const { return {data(owners), owners ? static_cast<std::int64_t>(owners->size()) : 0}; }
};

template <class Real>
double bind_moments(BoundSeATape<Real>& bound, nb::handle env, std::optional<Array<const std::int32_t>> owners,
                    nb::handle p, nb::handle e, int threads, Array<Real> result) {
    bound.system.emplace(env), bound.owners = std::move(owners), bound.descriptor.emplace(p, e);
    nb::gil_scoped_release release;
    return bound.tape.moments(bound.system->view(), bound.descriptor->view, threads, result.data());
}

template <class Real>
void bind_forces_into(BoundSeATape<Real>& bound, Array<const Real> moments_adjoint, Array<double> forces,
                      Array<double> center_virial) {
    nb::gil_scoped_release release;
    bound.tape.forces_into(bound.system.value().view(), bound.images(), bound.descriptor->view, moments_adjoint.data(),
                           forces.data(), center_virial.data());
}

template <class Real>
void bind_tangent(BoundSeATape<Real>& bound, Array<const double> direction, Array<const double> strain,
                  Array<Real> result) {
    nb::gil_scoped_release release;
    bound.tape.tangent(bound.system.value().view(), bound.images(), bound.descriptor->view, direction.data(),
                       strain.data(), result.data());
}

template <class Real>
void bind_tangent_adjoint(BoundSeATape<Real>& bound, Array<const Real> moments_adjoint,
                          Array<const Real> moments_dot_adjoint, Array<double> coefficients, Array<double> empty) {
    nb::gil_scoped_release release;
    bound.tape.tangent_adjoint(bound.system.value().view(), bound.descriptor->view, moments_adjoint.data(),
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
    nb::class_<BoundSeATape<Real>>(m, "SeATape")
        .def(nb::init<>())
        .def("moments", &bind_moments<Real>, "env"_a, "owners"_a.none(), "p"_a, "e"_a, "threads"_a,
             "result"_a.noconvert())
        .def("forces_into", &bind_forces_into<Real>, "moments_adjoint"_a, "forces"_a.noconvert(),
             "center_virial"_a.noconvert())
        .def("tangent", &bind_tangent<Real>)
        .def("tangent_adjoint", &bind_tangent_adjoint<Real>);
    m.def("features", &bind_features<Real>);
}

template void bind_se_a<double>(nb::module_&);
template void bind_se_a<float>(nb::module_&);

}  // namespace dphpc
