// Bindings of Adam's step and the gradient's norm.

#include "adam.h"
#include "bind.h"

namespace dphpc {

template <class Real>
void bind_adam(nb::module_& m) {
    m.def(
        "adam_step",
        [](nb::handle settings, Array<const std::int64_t> ends, Array<const Real> gradient, int threads,
           Array<Real> value, Array<Real> first, Array<Real> second) {
            const auto number = [&](const char* name) { return nb::cast<double>(settings.attr(name)); };
            const AdamStep step{number("rate"),  number("beta1"), number("beta2"),
                                number("epsilon"), number("decay"), nb::cast<bool>(settings.attr("decoupled")),
                                nb::cast<std::int64_t>(settings.attr("count"))};
            nb::gil_scoped_release release;
            adam_step(step, Ends{ends.data(), ends.size()}, gradient.data(), threads, value.data(), first.data(),
                      second.data());
        },
        "settings"_a, "ends"_a, "gradient"_a, "threads"_a, "value"_a.noconvert(), "first"_a.noconvert(), "second"_a.noconvert());
    m.def(
        "squared_norm",
        [](Array<const std::int64_t> ends, Array<const Real> values, int threads) {
            nb::gil_scoped_release release;
            return squared_norm(Ends{ends.data(), ends.size()}, values.data(), threads);
        },
        "ends"_a, "values"_a, "threads"_a);
}

template void bind_adam<double>(nb::module_&);
template void bind_adam<float>(nb::module_&);

}  // namespace dphpc
