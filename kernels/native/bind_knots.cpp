// Bindings of the radial table as a function of the embedding networks' weights.

#include "bind_layers.h"
#include "knots.h"

namespace dphpc {

template <class Real>
void bind_knots(nb::module_& m) {
    using Tape = KnotTape<Real>;
    const auto grid_of = [](const Array<const double>& knots, const Array<const double>& widths) {
        return KnotGrid{knots.data(), widths.data(), static_cast<int>(widths.size())};
    };
    nb::class_<Tape>(m, "KnotTape")
        .def(nb::init<>())
        .def(
            "table",
            [grid_of](Tape& tape, const std::vector<Layers<Real>>& networks, Array<const double> knots,
                      Array<const double> widths, int threads, Array<Real> coefficients) {
                typename Tape::Networks views;
                for (const Layers<Real>& layers : networks) views.push_back(views_of(layers));
                nb::gil_scoped_release release;
                tape.table(views, grid_of(knots, widths), threads, coefficients.data());
            },
            "networks"_a, "knots"_a, "widths"_a, "threads"_a, "coefficients"_a.noconvert())
        .def(
            "gradient",
            [grid_of](Tape& tape, Array<const double> knots, Array<const double> widths,
                      Array<const double> coefficients, int threads,
                      const std::vector<LayerGradients<Real>>& networks) {
                std::vector<std::vector<LayerGradient<Real>>> gradients;
                for (const LayerGradients<Real>& layers : networks) gradients.push_back(gradients_of(layers));
                nb::gil_scoped_release release;
                tape.gradient(grid_of(knots, widths), coefficients.data(), threads, gradients);
            },
            "knots"_a, "widths"_a, "coefficients"_a, "threads"_a, "gradients"_a.noconvert());
}

template void bind_knots<double>(nb::module_&);
template void bind_knots<float>(nb::module_&);

}  // namespace dphpc
