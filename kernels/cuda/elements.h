// Kernels whose threads have one element each.
#pragma once

namespace dphpc {

__device__ inline long long my_element() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }

}  // namespace dphpc
