// The Python module of the kernels.  Arguments are checked and made contiguous by dphpc/ops/*/native.py.

#include <memory>

#include "bind.h"
#include "neighbors.h"
#include "parallel.h"

namespace dphpc {
namespace {

template <class T>
using Owned = nb::ndarray<nb::numpy, T, nb::ndim<1>>;

template <class T>
Owned<T> owned(std::unique_ptr<T[]> data, std::size_t size) {
    T* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return Owned<T>(raw, {size}, owner);
}

nb::tuple build_neighbors(Array<const double> positions, Array<const std::int32_t> types,
                          Array<const std::int64_t> ids, std::int64_t n_local, double reach, int threads) {
    std::unique_ptr<std::int64_t[]> offsets(new std::int64_t[n_local + 1]);
    std::unique_ptr<std::int32_t[]> indices;
    {
        nb::gil_scoped_release release;
        const CellGrid grid(positions.data(), types.data(), ids.data(), static_cast<std::int64_t>(types.size()), reach);
        grid.count(n_local, threads, offsets.get());
        indices.reset(new std::int32_t[offsets[n_local]]);
        grid.fill(n_local, threads, offsets.get(), indices.get());
    }
    const std::size_t n_pairs = offsets[n_local];
    return nb::make_tuple(owned(std::move(offsets), n_local + 1), owned(std::move(indices), n_pairs));
}

template <class Real>
void bind_precision(nb::module_ m) {
    bind_se_a<Real>(m), bind_fitting<Real>(m), bind_knots<Real>(m), bind_adam<Real>(m), bind_muon<Real>(m);
}

}  // namespace

NB_MODULE(DPHPC_MODULE, m) {
    m.attr("has_openmp") = has_openmp;
    m.def("release_threads", &release_threads);
    m.def("build_neighbors", &build_neighbors, "positions"_a, "types"_a, "ids"_a, "n_local"_a, "reach"_a,
          "threads"_a);
    bind_precision<double>(m.def_submodule("float64"));
    bind_precision<float>(m.def_submodule("float32"));
}

}  // namespace dphpc
