// Activation functions of dphpc/model/activations.py: value in y, slope as the result; `curvature` and `third` are the
// second and third derivative, given also those below.
//
// Plain arithmetic without calls or branches, so that loops over them are vectorized.  tanh is expm1(2|x|)/(expm1 + 2),
// with expm1 by range reduction x = n·ln2 + r and a Taylor polynomial in r: measured below 2.5 units in the last place
// in float64 and float32; NaN stays NaN.
#pragma once

#include "hd.h"

namespace dphpc {

template <class T>
struct FloatTraits;

template <>
struct FloatTraits<double> {
    using Bits = long long;
    static constexpr int mantissa_bits = 52, exponent_bias = 1023;
    static constexpr double rounder = 6755399441055744.0;  // 1.5·2⁵²: adding it rounds to a whole number
    static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    static constexpr double tanh_limit = 20.0;  // tanh is 1 beyond
    static constexpr int degree = 13;
};

template <>
struct FloatTraits<float> {
    using Bits = int;
    static constexpr int mantissa_bits = 23, exponent_bias = 127;
    static constexpr float rounder = 12582912.0f;  // 1.5·2²³
    static constexpr float ln2_high = 6.9314575195e-01f, ln2_low = 1.4286067653e-06f;
    static constexpr float tanh_limit = 10.0f;
    static constexpr int degree = 8;
};

// eˣ − 1 as 2ⁿ·p + (2ⁿ − 1), for |x| < 80; `power` is 2ⁿ and `p` is expm1 of the remainder.
template <class T>
DPHPC_HD void split_exponential(T x, T& power, T& p) {
    using F = FloatTraits<T>;
    constexpr T inverse_factorial[] = {
        T(1.0 / 2),         T(1.0 / 6),          T(1.0 / 24),          T(1.0 / 120),
        T(1.0 / 720),       T(1.0 / 5040),       T(1.0 / 40320),       T(1.0 / 362880),
        T(1.0 / 3628800),   T(1.0 / 39916800),   T(1.0 / 479001600),   T(1.0 / 6227020800.0)};
    const T shifted = x * T(1.4426950408889634) + F::rounder;
    const T n = shifted - F::rounder;
    T r = x - n * F::ln2_high;
    r = r - n * F::ln2_low;
    T tail = inverse_factorial[F::degree - 2];
    for (int k = F::degree - 3; k >= 0; --k) tail = tail * r + inverse_factorial[k];
    p = r + r * r * tail;
    typename F::Bits bits;
    const T biased = n + T(F::exponent_bias) + F::rounder;  // the whole number stands in the lowest bits
    DPHPC_MEMCPY(&bits, &biased, sizeof bits);
    bits = static_cast<typename F::Bits>(static_cast<unsigned long long>(bits) << F::mantissa_bits);
    DPHPC_MEMCPY(&power, &bits, sizeof power);
}

template <class T>
DPHPC_HD T tanh_of(T x) {
    T size = x < T(0) ? -x : x;
    size = size > FloatTraits<T>::tanh_limit ? FloatTraits<T>::tanh_limit : size;
    T power, p;
    split_exponential(T(2) * size, power, p);
    const T e = power * p + (power - T(1));
    const T value = e / (e + T(2));
    return x < T(0) ? -value : value;
}

template <class T>
DPHPC_HD T logistic(T x) {
    return T(0.5) * (T(1) + tanh_of(T(0.5) * x));
}

struct Linear {
    template <class T>
    DPHPC_HD T operator()(T x, T& y) const {
        y = x;
        return T(1);
    }

    template <class T>
    DPHPC_HD T curvature(T, T, T) const {
        return T(0);
    }

    template <class T>
    DPHPC_HD T third(T, T, T, T) const {
        return T(0);
    }
};

struct Tanh {
    template <class T>
    DPHPC_HD T operator()(T x, T& y) const {
        y = tanh_of(x);
        return T(1) - y * y;
    }

    template <class T>
    DPHPC_HD T curvature(T, T y, T slope) const {
        return T(-2) * y * slope;
    }

    template <class T>
    DPHPC_HD T third(T, T y, T slope, T curvature) const {
        return T(-2) * (slope * slope + y * curvature);
    }
};

struct Sigmoid {
    template <class T>
    DPHPC_HD T operator()(T x, T& y) const {
        y = logistic(x);
        return y * (T(1) - y);
    }

    template <class T>
    DPHPC_HD T curvature(T, T y, T slope) const {
        return slope * (T(1) - T(2) * y);
    }

    template <class T>
    DPHPC_HD T third(T, T y, T slope, T curvature) const {
        return curvature * (T(1) - T(2) * y) - T(2) * slope * slope;
    }
};

// log(1 + eˣ) = max(x, 0) + 2·artanh(e/(2 + e)) with e = exp(−|x|) ≤ 1, so the argument is at most 1/3.
struct Softplus {
    template <class T>
    DPHPC_HD T operator()(T x, T& y) const {
        T size = x < T(0) ? -x : x;
        size = size > T(80) ? T(80) : size;
        T power, p;
        split_exponential(-size, power, p);
        const T e = power * p + power, z = e / (T(2) + e), z2 = z * z;
        T series = T(1.0 / 35);
#pragma GCC unroll 17
        for (int k = 33; k >= 1; k -= 2) series = series * z2 + T(1) / T(k);
        y = T(2) * z * series + (x > T(0) ? x : T(0));
        return logistic(x);
    }

    template <class T>
    DPHPC_HD T curvature(T, T, T slope) const {
        return slope * (T(1) - slope);
    }

    template <class T>
    DPHPC_HD T third(T, T, T slope, T curvature) const {
        return curvature * (T(1) - T(2) * slope);
    }
};

struct Relu {
    template <class T>
    DPHPC_HD T operator()(T x, T& y) const {
        y = x < T(0) ? T(0) : x;
        return x > T(0) ? T(1) : T(0);
    }

    template <class T>
    DPHPC_HD T curvature(T, T, T) const {
        return T(0);
    }

    template <class T>
    DPHPC_HD T third(T, T, T, T) const {
        return T(0);
    }
};

struct Relu6 {
    template <class T>
    DPHPC_HD T operator()(T x, T& y) const {
        const T low = x < T(0) ? T(0) : x;
        y = low > T(6) ? T(6) : low;
        return x > T(0) && x < T(6) ? T(1) : T(0);
    }

    template <class T>
    DPHPC_HD T curvature(T, T, T) const {
        return T(0);
    }

    template <class T>
    DPHPC_HD T third(T, T, T, T) const {
        return T(0);
    }
};

// The tanh form (Hendrycks & Gimpel, arXiv:1606.08415), which DeePMD-kit uses under both names.
struct Gelu {
    template <class T>
    DPHPC_HD T operator()(T x, T& y) const {
        const T c = T(0.79788456080286535588), k = T(0.044715);
        const T t = tanh_of(c * (x + k * x * x * x));
        y = T(0.5) * x * (T(1) + t);
        return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * c * (T(1) + T(3) * k * x * x);
    }

    template <class T>
    DPHPC_HD T curvature(T x, T, T) const {
        const T c = T(0.79788456080286535588), k = T(0.044715);
        const T t = tanh_of(c * (x + k * x * x * x)), dt = T(1) - t * t;
        const T u1 = c * (T(1) + T(3) * k * x * x), u2 = T(6) * c * k * x;
        return dt * u1 + T(0.5) * x * (T(-2) * t * dt * u1 * u1 + dt * u2);
    }

    template <class T>
    DPHPC_HD T third(T x, T, T, T) const {
        const T c = T(0.79788456080286535588), k = T(0.044715);
        const T t = tanh_of(c * (x + k * x * x * x)), d1 = T(1) - t * t, d2 = T(-2) * t * d1, d3 = T(-2) * (d1 * d1 + t * d2);
        const T u1 = c * (T(1) + T(3) * k * x * x), u2 = T(6) * c * k * x, u3 = T(6) * c * k;
        return T(1.5) * (d2 * u1 * u1 + d1 * u2) + T(0.5) * x * (T(3) * d2 * u1 * u2 + d1 * u3 + d3 * u1 * u1 * u1);
    }
};

struct Silu {
    template <class T>
    DPHPC_HD T operator()(T x, T& y) const {
        const T g = logistic(x);
        y = x * g;
        return g + x * g * (T(1) - g);
    }

    template <class T>
    DPHPC_HD T curvature(T x, T, T) const {
        const T g = logistic(x), d = g * (T(1) - g);
        return T(2) * d + x * d * (T(1) - T(2) * g);
    }

    template <class T>
    DPHPC_HD T third(T x, T, T, T) const {
        const T g = logistic(x), d1 = g * (T(1) - g), d2 = d1 * (T(1) - T(2) * g);
        return T(3) * d2 + x * (d2 * (T(1) - T(2) * g) - T(2) * d1 * d1);
    }
};

// silu below the threshold, above it a tanh that continues value and slope there.
struct Silut {
    double threshold, value, slope;

    template <class T>
    DPHPC_HD T operator()(T x, T& y) const {
        const T g = logistic(x), t = tanh_of(T(slope) * (x - T(threshold)));
        const bool below = x < T(threshold);
        y = below ? x * g : t + T(value);
        return below ? g + x * g * (T(1) - g) : T(slope) * (T(1) - t * t);
    }

    template <class T>
    DPHPC_HD T curvature(T x, T y, T s) const {
        const T t = y - T(value);
        return x < T(threshold) ? Silu{}.curvature(x, y, s) : T(-2) * T(slope) * t * s;
    }

    template <class T>
    DPHPC_HD T third(T x, T y, T s, T curvature) const {
        return x < T(threshold) ? Silu{}.third(x, y, s, curvature)
                                : T(-2) * T(slope) * (s * s + (y - T(value)) * curvature);
    }
};

}  // namespace dphpc
