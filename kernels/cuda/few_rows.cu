// Layers of a fitting net for few atoms: a matrix product and the activation in one launch.
//
// A block computes ROWS × COLUMNS elements.  Pieces of both factors, with DEPTH terms of the sums, are read into shared
// memory while the next ones are being loaded.  Each group of 32 threads sums its share of a piece's terms for all of the
// block's elements, and in the end the shares are added.  So the order of an element's sum does not depend on its row.
//
// Defined in front of this text: Real, PARTS (1), ROWS and COLUMNS (whole multiples of 8), DEPTH (of 32), and BLOCK.
#include "output.h"

namespace dphpc {

constexpr int SHARES = BLOCK / 32, TERMS = DEPTH / SHARES;

// `outer` rows of a factor (n, depth), which may be stored transposed; a thread reads the same part of each piece.
template <int outer, bool transposed>
struct Factor {
    static constexpr int length = transposed ? outer : DEPTH;  // of a contiguous run of the piece
    static constexpr int stride = length + 4;                  // padded against bank conflicts
    static constexpr int size = outer * DEPTH / length * stride;
    static constexpr int step = BLOCK / length, own = outer * DEPTH / BLOCK;
    static_assert(BLOCK % length == 0 && own > 0, "threads have equal shares");

    const Real* next;
    int pitch, rows, terms;  // of the factor in memory; rows and terms left from the thread's first element on
    Real kept[own];

    __device__ Factor(const Real* factor, int n, int depth, int first) {
        const int at = threadIdx.x % length, from = threadIdx.x / length;
        const int row = first + (transposed ? at : from), term = transposed ? from : at;
        pitch = transposed ? n : depth;
        next = factor + (transposed ? term : row) * static_cast<long long>(pitch) + (transposed ? row : term);
        rows = n - row, terms = depth - term;
    }

    // Begins to read the next piece; elements beyond the factor are zero.
    __device__ void fetch() {
#pragma unroll
        for (int i = 0; i < own; ++i) {
            const bool inside = transposed ? rows > 0 && terms > i * step : rows > i * step && terms > 0;
            kept[i] = inside ? next[i * step * pitch] : Real(0);
        }
        next += transposed ? DEPTH * pitch : DEPTH;
        terms -= DEPTH;
    }

    __device__ void lay(Real* piece) const {
        Real* place = piece + threadIdx.x / length * stride + threadIdx.x % length;
#pragma unroll
        for (int i = 0; i < own; ++i) place[i * step * stride] = kept[i];
    }

    static __device__ int place(int row, int term) { return transposed ? term * stride + row : row * stride + term; }
};

// A thread's share of the sums of its elements of the block.
template <class T>
struct Sums {
    static constexpr int terms = 1, rows = ROWS / 4, columns = COLUMNS / 8;
    T sums[rows][columns] = {};

    // Adds `terms` terms from the k-th on.
    template <class Left, class Right>
    __device__ void add(const T* left, const T* right, int k) {
        const int row = threadIdx.x % 32 / 8, column = threadIdx.x % 8;
        T a[rows], b[columns];
#pragma unroll
        for (int i = 0; i < rows; ++i) a[i] = left[Left::place(row + 4 * i, k)];
#pragma unroll
        for (int j = 0; j < columns; ++j) b[j] = right[Right::place(column + 8 * j, k)];
#pragma unroll
        for (int i = 0; i < rows; ++i)
#pragma unroll
            for (int j = 0; j < columns; ++j) sums[i][j] += a[i] * b[j];
    }

    __device__ void lay(T* share) const {
        const int row = threadIdx.x % 32 / 8, column = threadIdx.x % 8;
#pragma unroll
        for (int i = 0; i < rows; ++i)
#pragma unroll
            for (int j = 0; j < columns; ++j) share[(row + 4 * i) * COLUMNS + column + 8 * j] = sums[i][j];
    }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// By tensor cores, which multiply 8 × 4 by 4 × 8 matrices and need a sixth of the reads from shared memory.
template <>
struct Sums<double> {
    static constexpr int terms = 4, rows = ROWS / 8, columns = COLUMNS / 8;
    double sums[rows][columns][2] = {};

    template <class Left, class Right>
    __device__ void add(const double* left, const double* right, int k) {
        const int row = threadIdx.x % 32 / 4, term = k + threadIdx.x % 4;
        double a[rows], b[columns];
#pragma unroll
        for (int i = 0; i < rows; ++i) a[i] = left[Left::place(row + 8 * i, term)];
#pragma unroll
        for (int j = 0; j < columns; ++j) b[j] = right[Right::place(row + 8 * j, term)];
#pragma unroll
        for (int i = 0; i < rows; ++i)
#pragma unroll
            for (int j = 0; j < columns; ++j)
                asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                             : "+d"(sums[i][j][0]), "+d"(sums[i][j][1])
                             : "d"(a[i]), "d"(b[j]));
    }

    __device__ void lay(double* share) const {
        const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < rows; ++i)
#pragma unroll
            for (int j = 0; j < columns; ++j)
#pragma unroll
                for (int k = 0; k < 2; ++k) share[(row + 8 * i) * COLUMNS + column + 8 * j + k] = sums[i][j][k];
    }
};
#endif

// Calls `take` with each element (row, column) of this block of x·w, with x (n, depth) and w (depth, width); with `back` w
// is stored transposed.
template <bool back, class Take>
__device__ inline void multiply(const Real* x, const Real* w, int n, int depth, int width, const Take& take) {
    using Left = Factor<ROWS, false>;
    using Right = Factor<COLUMNS, !back>;
    constexpr int pieces = Left::size + Right::size, shares = SHARES * ROWS * COLUMNS;
    __shared__ Real room[pieces > shares ? pieces : shares];
    const int n_across = (width + COLUMNS - 1) / COLUMNS, share = threadIdx.x / 32;
    const int first_row = blockIdx.x / n_across * ROWS, first_column = blockIdx.x % n_across * COLUMNS;
    Left left(x, n, depth, first_row);
    Right right(w, width, depth, first_column);
    Sums<Real> sums;
    left.fetch();
    right.fetch();
    for (int first = 0; first < depth; first += DEPTH) {
        __syncthreads();
        left.lay(room);
        right.lay(room + Left::size);
        __syncthreads();
        left.fetch();
        right.fetch();
#pragma unroll
        for (int k = 0; k < TERMS; k += Sums<Real>::terms)
            sums.template add<Left, Right>(room, room + Left::size, share * TERMS + k);
    }
    __syncthreads();
    sums.lay(room + share * ROWS * COLUMNS);
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += BLOCK) {
        const int row = first_row + i / COLUMNS, column = first_column + i % COLUMNS;
        if (row >= n || column >= width) continue;
        Real sum = 0;
        for (int s = 0; s < SHARES; ++s) sum += room[s * ROWS * COLUMNS + i];
        take(row, column, sum);
    }
}

// x (n, n_in); slope (n, n_out), ∂y/∂(x·w), and y (n, n_out) are set.
extern "C" __global__ void __launch_bounds__(BLOCK)
layer_ahead(const Layer layer, const Real* w, long long n, const Real* x, Real* slope, Real* y) {
    multiply<false>(x, w, n, layer.n_in, layer.n_out, [&](long long row, int column, Real z) {
        const long long i = row * layer.n_out + column;
        slope[i] = output(layer, column, z, x + row * layer.n_in, y[i]);
    });
}

// factor (n, n_out) is the adjoint of x·w.  Sets the adjoint (n, n_in) of x, with the skip connection's share from that of
// the output (n, n_out), and its product with the slope (n, n_in) of the layer before, if there is one.
extern "C" __global__ void __launch_bounds__(BLOCK)
layer_back(const Layer layer, const Real* w, long long n, const Real* factor, const Real* output_adjoint, Real* adjoint,
           const Real* slope, Real* product) {
    multiply<true>(factor, w, n, layer.n_out, layer.n_in, [&](long long row, int column, Real sum) {
        const long long i = row * layer.n_in + column;
        sum = adjoint[i] = with_skip(layer, i, output_adjoint, sum);
        if (slope) product[i] = slope[i] * sum;
    });
}

}  // namespace dphpc
