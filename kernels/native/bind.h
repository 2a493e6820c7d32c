// Array arguments as the bindings write them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

namespace dphpc {

namespace nb = nanobind;
using namespace nb::literals;

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

void bind_se_a(nb::module_& m);     // makes the submodules float64 and float32
void bind_fitting(nb::module_& m);  // adds to them

}  // namespace dphpc
