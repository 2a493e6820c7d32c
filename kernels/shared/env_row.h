// The smooth switch and the radial parts of an environment row.
//
// Zhang et al., NeurIPS 31 (2018), arXiv:1805.09003, with the C² switch of DeePMD-kit.  For a neighbor at x, r = |x|:
// row = (s, v·x) with s = sw(r)/(r+p) and v = sw(r)/(r+p)², p being `env_protection`.
#pragma once

#include "hd.h"

namespace dphpc {

struct SwitchParameters {
    double rcut, rcut_smth, protection;
    double inverse_width;  // 1/(rcut − rcut_smth)
};

// s and v and their derivatives by r.
template <class T>
struct RadialParts {
    T s, ds, v, dv;
};

// sw(r) = u³(−6u² + 15u − 10) + 1 with u = (r − rcut_smth)/(rcut − rcut_smth) held inside [0, 1]; no branches.
template <class T>
DPHPC_HD void smooth_switch(T r, T rcut_smth, T inverse_width, T& value, T& slope) {
    T u = (r - rcut_smth) * inverse_width;
    u = u > T(0) ? u : T(0);
    u = u < T(1) ? u : T(1);
    const T u2 = u * u, rest = u - T(1);
    value = u2 * u * ((T(-6) * u + T(15)) * u - T(10)) + T(1);
    slope = T(-30) * u2 * rest * rest * inverse_width;
}

template <class T>
DPHPC_HD RadialParts<T> radial_parts(T r, const SwitchParameters& p) {
    T sw, dsw;
    smooth_switch(r, T(p.rcut_smth), T(p.inverse_width), sw, dsw);
    const T q = T(1) / (r + T(p.protection));
    RadialParts<T> parts;
    parts.s = sw * q;
    parts.ds = (dsw - parts.s) * q;
    parts.v = parts.s * q;
    parts.dv = (parts.ds - parts.v) * q;
    return parts;
}

}  // namespace dphpc
