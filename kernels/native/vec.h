// Fixed-width vectors through the compiler's vector extension: one source for SSE, AVX2, AVX-512 and NEON.
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

// Sums of neighboring elements: (a0+a1, a2+a3, …, b0+b1, …).
template <class T, int N, std::size_t... I>
inline Vec<T, N> pairwise_sums(Vec<T, N> a, Vec<T, N> b, std::index_sequence<I...>) {
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
    return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
#else
    Vec<T, N> sums;
    ((sums[I] = I < N / 2 ? a[2 * I % N] + a[(2 * I + 1) % N] : b[2 * I % N] + b[(2 * I + 1) % N]), ...);
    return sums;
#endif
}

// sums[i] += Σ lanes of v[i], for `n_vectors` vectors; changes v.
template <int n_vectors, class T, int N>
inline void add_lane_sums(Vec<T, N>* v, T* sums) {
    if constexpr (N == 1) {
        for (int i = 0; i < n_vectors; ++i) sums[i] += v[i];
    } else {
        // Each round halves the number of vectors and doubles how many sums stand in one.
        constexpr int rows = n_vectors % N == 0 ? n_vectors : (n_vectors + N - 1) / N * N;
        Vec<T, N> w[rows];
        for (int i = 0; i < rows; ++i) w[i] = i < n_vectors ? v[i] : Vec<T, N>{};
        for (int left = rows; left > rows / N; left /= 2)
            for (int i = 0; i < left / 2; ++i)
                w[i] = pairwise_sums<T, N>(w[2 * i], w[2 * i + 1], std::make_index_sequence<N>{});
        for (int i = 0; i < rows / N; ++i)
            for (int l = 0; l < N; ++l)
                if (i * N + l < n_vectors) sums[i * N + l] += w[i][l];
    }
}

}  // namespace dphpc
