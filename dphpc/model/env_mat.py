"""The environment of an atom: switch function and environment rows (plain NumPy formulas).

Zhang et al., NeurIPS 31 (2018), arXiv:1805.09003, Eqs. (4)–(5), with the C² switch of DeePMD-kit:
sw(r) = 1 for r < rcut_smth, u³(−6u² + 15u − 10) + 1 with u = (r − rcut_smth)/(rcut − rcut_smth), and 0
beyond rcut.
"""

from __future__ import annotations

import numpy as np

from dphpc.core.arrays import Floats


def switch(r: Floats, rcut: float, rcut_smth: float) -> tuple[Floats, Floats]:
    """sw(r) and dsw/dr for distances r in Å."""
    u = np.clip((r - rcut_smth) / (rcut - rcut_smth), 0.0, 1.0)
    value = u**3 * (-6.0 * u**2 + 15.0 * u - 10.0) + 1.0
    slope = -30.0 * u**2 * (u - 1.0) ** 2 / (rcut - rcut_smth)
    return value, slope


def environment_rows(
    displacements: Floats, rcut: float, rcut_smth: float, protection: float = 0.0
) -> tuple[Floats, Floats]:
    """Rows (s, s·x/r, s·y/r, s·z/r) and their derivatives.

    Parameters
    ----------
    displacements
        (n, 3) Å, neighbor minus center, none of length 0.
    protection
        p of DeePMD-kit's `env_protection`: s = sw/(r+p), and the direction terms are sw·x/(r+p)².

    Returns
    -------
    rows, derivatives
        (n, 4) and (n, 4, 3), the latter with respect to the displacement.
    """
    r = np.linalg.norm(displacements, axis=1)
    sw, dsw = switch(r, rcut, rcut_smth)
    q = 1.0 / (r + protection)
    unit = displacements / r[:, None]
    s, ds = sw * q, dsw * q - sw * q**2
    v, dv = s * q, ds * q - s * q**2  # direction terms are v·x
    rows = np.concatenate((s[:, None], v[:, None] * displacements), axis=1)
    derivatives = np.empty((len(r), 4, 3), rows.dtype)
    derivatives[:, 0] = ds[:, None] * unit
    derivatives[:, 1:] = dv[:, None, None] * displacements[:, :, None] * unit[:, None, :]
    derivatives[:, 1:] += v[:, None, None] * np.eye(3)
    return rows, derivatives
