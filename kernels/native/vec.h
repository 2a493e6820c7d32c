// Vectors of fixed width by the compiler's vector extension: one source for SSE, AVX2, AVX-512 and NEON.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

namespace dphpc {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, vector_registers = 32;
#elif defined(__AVX__)
constexpr int vector_bytes = 32, vector_registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, vector_registers = 32;
#else
constexpr int vector_bytes = 16, vector_registers = 16;
#endif

template <class T>
constexpr int vector_lanes = vector_bytes / static_cast<int>(sizeof(T));

template <class T, int N>
struct VecOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
struct VecOf<T, 1> {
    using type = T;
};
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

template <class T, int N>
inline Vec<T, N> load(const T* p) {
    Vec<T, N> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T, int N>
inline void store(T* p, Vec<T, N> v) {
    std::memcpy(p, &v, sizeof v);
}

// For each block of 2h lanes the first h lanes (with `start` = h the last h) of a, then those of b.
template <int h, int start, class T, int N, std::size_t... I>
inline Vec<T, N> half_blocks(Vec<T, N> a, Vec<T, N> b, std::index_sequence<I...>) {
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
    return __builtin_shufflevector(a, b, (I / (2 * h) * 2 * h + I % h + start + (I / h % 2) * N)...);
#else
    Vec<T, N> halves;
    ((halves[I] = (I / h % 2 ? b : a)[I / (2 * h) * 2 * h + I % h + start]), ...);
    return halves;
#endif
}

// Reduces n vectors to their lane sums: repeatedly combines two vectors into one, in which each has half as many lanes
// left, until each has a single lane, in the order of the vectors.
template <int n, int h, class T, int N>
inline void fold_lanes(Vec<T, N>* v) {
    if constexpr (h < N) {
        constexpr auto lanes = std::make_index_sequence<N>{};
        for (int i = 0; i < n / 2; ++i)
            v[i] = half_blocks<h, 0, T, N>(v[2 * i], v[2 * i + 1], lanes) + half_blocks<h, h, T, N>(v[2 * i], v[2 * i + 1], lanes);
        fold_lanes<n / 2, 2 * h, T, N>(v);
    }
}

// sums[i] = Σ lanes of v[i], for `n_vectors` vectors.
template <int n_vectors, class T, int N>
inline void set_lane_sums(const Vec<T, N>* v, T* sums) {
    if constexpr (N == 1) {
        for (int i = 0; i < n_vectors; ++i) sums[i] = v[i];
    } else {
        constexpr int rows = (n_vectors + N - 1) / N * N;
        Vec<T, N> w[rows] = {};
        for (int i = 0; i < n_vectors; ++i) w[i] = v[i];
        fold_lanes<rows, 1, T, N>(w);
        std::memcpy(sums, w, n_vectors * sizeof(T));
    }
}

// A vector of 1 in the last n lanes and 0 in the others.
template <class T, int N>
inline Vec<T, N> last_lanes(int n) {
    T ones[2 * N] = {};
    for (int i = N; i < 2 * N; ++i) ones[i] = T(1);
    return load<T, N>(ones + n);
}

}  // namespace dphpc
