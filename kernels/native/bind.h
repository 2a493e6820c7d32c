// Array arguments of the bindings.  The dataclasses of dphpc.ops.se_a.contract are read by attribute name.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>

#include "grid_parts.h"
#include "se_a.h"

namespace dphpc {

namespace nb = nanobind;
using namespace nb::literals;

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

// The address of an array's numbers; null for None.
inline const auto data = [](const auto& array) { return array ? array->data() : nullptr; };

template <class T>
inline Array<const T> array_of(nb::handle object, const char* name) {
    return nb::cast<Array<const T>>(object.attr(name));
}

// Views of the arrays of Python objects, which are kept alive as long as the views.
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

// The grid of a dphpc.model.radial_table.Grid.
inline RadialGrid grid_of(nb::handle grid) {
    double starts[RadialGrid::most_parts], steps[RadialGrid::most_parts];
    int counts[RadialGrid::most_parts];
    const nb::tuple given[] = {nb::cast<nb::tuple>(grid.attr("starts")), nb::cast<nb::tuple>(grid.attr("steps")),
                               nb::cast<nb::tuple>(grid.attr("counts"))};
    const int n = std::min(static_cast<int>(given[2].size()), RadialGrid::most_parts);
    for (int k = 0; k < n; ++k) {
        starts[k] = nb::cast<double>(given[0][k]), steps[k] = nb::cast<double>(given[1][k]);
        counts[k] = nb::cast<int>(given[2][k]);
    }
    return grid_of_parts(n, starts, steps, counts);
}

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
        const double rcut = number(p, "rcut"), rcut_smth = number(p, "rcut_smth");
        view.cut = {rcut, rcut_smth, number(p, "protection"), 1.0 / (rcut - rcut_smth)};
        view.scale = number(p, "scale");
        view.n_types = static_cast<int>(sel.size());
        view.n_intervals = static_cast<int>(coefficients.shape(1));
        view.channels = static_cast<int>(coefficients.shape(3));
        view.sel = sel.data(), view.davg = davg.data(), view.dstd = dstd.data();
        view.network = network.data(), view.flags = flags.data();
        view.coefficients = coefficients.data(), view.empty = empty.data();
        view.round_displacements = nb::cast<bool>(p.attr("round_displacements"));
        for (nb::handle grid : e.attr("table").attr("grids")) {
            view.grids.push_back(grid_of(grid));
        }
    }

    Array<const std::int32_t> sel, network;
    Array<const double> davg, dstd;
    Array<const std::uint8_t> flags;
    Array<const Real> coefficients, empty;
    Descriptor<Real> view;
};

// Each adds its operations to the module of a precision, double or float.
template <class Real>
void bind_se_a(nb::module_& m);
template <class Real>
void bind_fitting(nb::module_& m);
template <class Real>
void bind_knots(nb::module_& m);
template <class Real>
void bind_adam(nb::module_& m);
template <class Real>
void bind_muon(nb::module_& m);

}  // namespace dphpc
