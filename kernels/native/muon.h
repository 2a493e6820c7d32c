// A step of Muon; dphpc/ops/muon/contract.py has the formulas.
#pragma once

#include <cstdint>
#include <vector>

namespace dphpc {

struct MuonStep {
    double rate, momentum, decay;
    bool gram;  // iterate on the Gram matrix of matrices that are not square
};

template <class Real>
struct MuonMatrix {
    const Real* gradient;  // (rows, columns), like the others
    Real *value, *momentum;
    std::int64_t rows, columns;
    double scale;
};

// Updates values and momenta in place, with the same bits for any number of threads.
template <class Real>
void muon_step(const MuonStep& s, const std::vector<MuonMatrix<Real>>& matrices, int threads);

}  // namespace dphpc
