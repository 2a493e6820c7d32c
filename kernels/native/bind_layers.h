// Networks and their gradients as arguments of the bindings.
#pragma once

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "fitting_tape.h"

namespace dphpc {

// A layer: w (n_in, n_out), b and idt (n_out) or None, activation and its threshold, number of copies of the input that
// a skip connection adds.
template <class Real>
using LayerArrays = std::tuple<Array<const Real>, std::optional<Array<const Real>>, std::optional<Array<const Real>>,
                               std::string, double, int>;

template <class Real>
using Layers = std::vector<LayerArrays<Real>>;

template <class Real>
inline std::vector<LayerView<Real>> views_of(const Layers<Real>& layers) {
    std::vector<LayerView<Real>> views;
    for (const auto& [w, b, idt, name, threshold, skip] : layers)
        views.push_back({w.data(), data(b), data(idt), static_cast<int>(w.shape(0)), static_cast<int>(w.shape(1)), skip,
                         activation_of(name, threshold)});
    return views;
}

// Gradients with respect to w, b and idt of each layer; None for those that are not wanted.
template <class Real>
using LayerGradients =
    std::vector<std::tuple<std::optional<Array<Real>>, std::optional<Array<Real>>, std::optional<Array<Real>>>>;

template <class Real>
inline std::vector<LayerGradient<Real>> gradients_of(const LayerGradients<Real>& layers) {
    std::vector<LayerGradient<Real>> gradients;
    for (const auto& [w, b, idt] : layers) gradients.push_back({data(w), data(b), data(idt)});
    return gradients;
}

}  // namespace dphpc
