// Sums whose bits do not depend on the order of their terms; the idea and the spacings' reach: dphpc/core/exact_sum.py.
#pragma once

#include "hd.h"

namespace dphpc {

// Rounds to the nearest multiple of a spacing that is a power of two; a spacing of 0 leaves everything as it is.
class RoundTo {
  public:
    DPHPC_HD explicit RoundTo(double spacing) : shift_(0x1.8p52 * spacing) {}
    DPHPC_HD double operator()(double x) const { return (x + shift_) - shift_; }

  private:
    double shift_;
};

struct ExactSum {
    static constexpr int parts = 3;
    double part[parts] = {0.0, 0.0, 0.0};

    DPHPC_HD void add(double x) {
        constexpr double spacing[parts] = {0x1p-8, 0x1p-30, 0x1p-52};
        for (int k = 0; k < parts; ++k) {
            const double rounded = RoundTo(spacing[k])(x);
            part[k] += rounded;
            x -= rounded;
        }
    }
};

}  // namespace dphpc
