// A matrix is processed by a single thread: threads that shared its products would wait for each other's caches, and
// two of them took as long as one.
#include "muon.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "parallel.h"
#include "product.h"

namespace dphpc {
namespace {

constexpr float a = 3.4445f, b = -4.7750f, c = 2.0315f;
constexpr int iterations = 5;
constexpr double tiny = 1e-30;  // keeps a zero matrix zero
// Of a symmetric product only blocks on and above the diagonal are computed; they begin where a panel does.
constexpr int block_rows = ProductBlock<float>::columns;

// A matrix being orthogonalized: x (rows, n) with rows ≥ n, the transpose of a matrix with more columns than rows.
class Iterate {
  public:
    void resize(std::int64_t rows, std::int64_t n) {
        if (rows_ == rows && n_ == n) return;
        rows_ = rows, n_ = static_cast<int>(n), step_ = padded<float>(n_);
        for (auto* matrix : {&x_, &next_}) matrix->assign(rows_ * step_, 0.0f);
        for (auto* matrix : {&gram_, &p_, &product_, &room_}) matrix->assign(n_ * step_, 0.0f);
    }

    // Sets x to element(i, j), divided by the norm of all elements.
    template <class Element>
    void set(Element&& element) {
        double square = 0.0;
        for (std::int64_t i = 0; i < rows_; ++i) {
            double of_row = 0.0;
            for (int j = 0; j < n_; ++j) {
                const float value = x_[i * step_ + j] = element(i, j);
                of_row += static_cast<double>(value) * value;
            }
            square += of_row;
        }
        const float inverse = static_cast<float>(1.0 / (std::sqrt(square) + tiny));
        for (float& value : x_) value *= inverse;
    }

    template <class Take>
    void get(Take&& take) const {
        for (std::int64_t i = 0; i < rows_; ++i)
            for (int j = 0; j < n_; ++j) take(i, j, x_[i * step_ + j]);
    }

    // x ← x·p(xᵀx) five times, p(g) = a + b·g + c·g².
    void orthogonalize() {
        for (int k = 0; k < iterations; ++k) {
            set_gram();
            set_polynomial();
            multiply_x(p_);
        }
    }

    // The same, iterating on g = xᵀx by g ← p·g·p, so that the long matrix x enters two products only.
    void orthogonalize_by_gram() {
        set_gram();
        for (int k = 0; k < iterations; ++k) {
            set_polynomial();
            pack(p_);
            if (k == 0) product_ = p_;
            else multiply(product_);
            if (k + 1 == iterations) break;
            multiply(gram_);
            multiply(gram_);
        }
        multiply_x(product_);
    }

  private:
    using Matrix = std::vector<float>;

    void pack(const Matrix& right) {
        packed_.pack_rows(static_cast<int>(right.size() / step_), n_, [&](int k) {
            return [row = right.data() + k * step_](int j) { return row[j]; };
        });
    }

    void set_gram() {
        pack(x_);
        multiply_symmetric(x_, 1, step_, gram_, [](int, int) {});
    }

    void set_polynomial() {
        pack(gram_);
        multiply_symmetric(gram_, step_, 1, p_, [&](int first, int last) {
            for (int i = first; i < last; ++i) {
                float* const row = p_.data() + i * step_;
                const float* const g = gram_.data() + i * step_;
                for (int j = first; j < n_; ++j) row[j] = b * g[j] + c * row[j];
                row[i] += a;
            }
        });
    }

    // left ← left · packed; the two matrices commute, so that the product is symmetric.
    void multiply(Matrix& left) {
        multiply_symmetric(left, step_, 1, room_, [](int, int) {});
        left.swap(room_);
    }

    // out = left · packed, which must be symmetric.  change(first, last) may change these rows, from the block on the
    // diagonal on, before they are mirrored.
    template <class Change>
    void multiply_symmetric(const Matrix& left, std::int64_t row_step, std::int64_t depth_step, Matrix& out,
                            Change&& change) {
        for (int first = 0; first < n_; first += block_rows) {
            const int last = std::min(first + block_rows, n_);
            for (int i = first; i < last; ++i) std::fill_n(out.data() + i * step_ + first, step_ - first, 0.0f);
            packed_.add_product(last - first, left.data() + first * row_step, row_step, depth_step,
                                out.data() + first * step_, step_, first);
            change(first, last);
            for (int j = last; j < n_; ++j)
                for (int i = first; i < last; ++i) out[j * step_ + i] = out[i * step_ + j];
        }
    }

    void multiply_x(const Matrix& right) {
        pack(right);
        std::fill(next_.begin(), next_.end(), 0.0f);
        for (std::int64_t first = 0; first < rows_; first += block_rows) {
            const int rows = static_cast<int>(std::min<std::int64_t>(block_rows, rows_ - first));
            packed_.add_product(rows, x_.data() + first * step_, step_, 1, next_.data() + first * step_, step_);
        }
        x_.swap(next_);
    }

    std::int64_t rows_ = 0, step_ = 0;        // step: the padded length of a row
    int n_ = 0;
    Matrix x_, next_;                         // (rows, step)
    Matrix gram_, p_, product_, room_;        // (n, step), symmetric
    PackedMatrix<float> packed_;              // the right factor of products
};

template <class Real>
void step_of(const MuonStep& s, const MuonMatrix<Real>& m, Iterate& iterate) {
    const bool wide = m.rows < m.columns;
    const std::int64_t row_step = wide ? 1 : m.columns, column_step = wide ? m.columns : 1;
    iterate.resize(std::max(m.rows, m.columns), std::min(m.rows, m.columns));
    const Real rest = static_cast<Real>(1.0 - s.momentum), beta = static_cast<Real>(s.momentum);
    iterate.set([&](std::int64_t i, int j) {
        const std::int64_t k = i * row_step + j * column_step;
        const Real gradient = m.gradient[k], momentum = m.momentum[k] + rest * (gradient - m.momentum[k]);
        m.momentum[k] = momentum;
        return static_cast<float>(gradient + beta * (momentum - gradient));
    });
    if (s.gram && m.rows != m.columns) iterate.orthogonalize_by_gram();
    else iterate.orthogonalize();
    const Real keep = static_cast<Real>(1.0 - s.rate * s.decay), length = static_cast<Real>(s.rate * m.scale);
    iterate.get([&](std::int64_t i, int j, float x) {
        Real& value = m.value[i * row_step + j * column_step];
        value = keep * value - length * static_cast<Real>(x);
    });
}

}  // namespace

template <class Real>
void muon_step(const MuonStep& s, const std::vector<MuonMatrix<Real>>& matrices, [[maybe_unused]] int threads) {
    // Kept between steps, as a training's matrices have the same shapes at every step.  The reference makes all threads
    // use the vector of the calling thread.
    static thread_local std::vector<Iterate> kept;
    std::vector<Iterate>& iterates = kept;
    iterates.resize(matrices.size());
    // Largest matrices first, so that no thread begins one at the end.
    std::vector<std::size_t> order(matrices.size());
    std::iota(order.begin(), order.end(), 0);
    const auto size = [&](std::size_t i) { return matrices[i].rows * matrices[i].columns; };
    std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return size(i) > size(j); });
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (order.size() > 1)
    for (std::size_t k = 0; k < order.size(); ++k) step_of(s, matrices[order[k]], iterates[order[k]]);
}

template void muon_step(const MuonStep&, const std::vector<MuonMatrix<double>>&, int);
template void muon_step(const MuonStep&, const std::vector<MuonMatrix<float>>&, int);

}  // namespace dphpc
