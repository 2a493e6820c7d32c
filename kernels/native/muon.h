// One step of Muon; formulas in dphpc/ops/muon/contract.py.
#pragma once

#include <cstdint>
#include <vector>

namespace dphpc {

struct MuonStep {
    double rate, momentum, decay;
    bool gram;  // iterate on the Gram matrix where the sides differ
};

template <class Real>
struct MuonMatrix {
    const Real* gradient;  // (rows, columns), as the others
    Real *value, *momentum;
    std::int64_t rows, columns;
    double scale;
};

// Changes values and momenta in place; the same bits with any number of threads.
template <class Real>
void muon_step(const MuonStep& s, const std::vector<MuonMatrix<Real>>& matrices, int threads);

}  // namespace dphpc
