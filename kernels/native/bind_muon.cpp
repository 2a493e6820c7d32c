// Binding of Muon's step.

#include "bind.h"
#include "muon.h"

namespace dphpc {

template <class Real>
void bind_muon(nb::module_& m) {
    m.def(
        "muon_step",
        [](nb::handle settings, nb::sequence matrices, int threads) {
            const auto number = [&](const char* name) { return nb::cast<double>(settings.attr(name)); };
            const MuonStep step{number("rate"), number("momentum"), number("decay"),
                                nb::cast<bool>(settings.attr("gram"))};
            std::vector<MuonMatrix<Real>> views;
            for (nb::handle m : matrices) {
                // No copies, which would not live until the step.
                const auto gradient = nb::cast<Array<const Real>>(m.attr("gradient"), false);
                const auto value = nb::cast<Array<Real>>(m.attr("value"), false);
                const auto momentum = nb::cast<Array<Real>>(m.attr("momentum"), false);
                views.push_back({gradient.data(), value.data(), momentum.data(),
                                 static_cast<std::int64_t>(value.shape(0)), static_cast<std::int64_t>(value.shape(1)),
                                 nb::cast<double>(m.attr("scale"))});
            }
            nb::gil_scoped_release release;
            muon_step(step, views, threads);
        },
        "settings"_a, "matrices"_a, "threads"_a);
}

template void bind_muon<double>(nb::module_&);
template void bind_muon<float>(nb::module_&);

}  // namespace dphpc
