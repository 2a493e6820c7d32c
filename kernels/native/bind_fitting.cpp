// Bindings of the fitting net's element-wise kernel.

#include <nanobind/stl/string.h>

#include "bind.h"
#include "fitting.h"

namespace dphpc {
namespace {

template <class Real>
void bind_activate(const std::string& activation, double threshold, std::optional<Array<const Real>> bias,
                   std::optional<Array<const Real>> idt, std::optional<Array<const Real>> input, int threads,
                   Array<Real> z, Array<Real> slope) {
    const auto data = [](const auto& array) { return array ? array->data() : nullptr; };
    const int n_in = input ? static_cast<int>(input->shape(1)) : 0;
    nb::gil_scoped_release release;
    activate<Real>(activation, threshold, static_cast<std::int64_t>(z.shape(0)), static_cast<int>(z.shape(1)),
                   data(bias), data(idt), data(input), n_in, threads, z.data(), slope.data());
}

template <class Real>
void bind_precision(nb::handle sub) {
    nb::module_ m = nb::borrow<nb::module_>(sub);
    m.def("activate", &bind_activate<Real>, "activation"_a, "threshold"_a, "bias"_a.none(), "idt"_a.none(),
          "input"_a.none(), "threads"_a, "z"_a.noconvert(), "slope"_a.noconvert());
}

}  // namespace

void bind_fitting(nb::module_& m) {
    bind_precision<double>(m.attr("float64"));
    bind_precision<float>(m.attr("float32"));
}

}  // namespace dphpc
