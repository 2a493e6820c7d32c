"""Units: Å, eV, e, u and ps inside; conversions live here and at the edges.

Values are CODATA 2018 (exact where the SI defines them).
"""

BOLTZMANN_EV_PER_K = 8.617333262e-5
"""k_B in eV/K."""

EV_IN_JOULE = 1.602176634e-19
EV_IN_KJ_PER_MOL = EV_IN_JOULE * 6.02214076e20
"""eV in kJ/mol."""

ATOMIC_MASS_KG = 1.66053906660e-27

ACCELERATION = EV_IN_JOULE / ATOMIC_MASS_KG * 1e-4
"""(eV/Å)/u in Å/ps²: multiplies force/mass to give an acceleration."""

KINETIC = 1.0 / ACCELERATION
"""u·(Å/ps)² in eV: ½·m·v²·KINETIC is a kinetic energy in eV."""

EV_PER_A3_IN_BAR = 1.602176634e6
"""eV/Å³ in bar."""

EV_PER_A3_IN_GPA = 160.2176634
"""eV/Å³ in GPa."""

FS = 1e-3
"""A femtosecond in ps."""

U_PER_A3_IN_G_PER_CM3 = ATOMIC_MASS_KG * 1e27
"""u/Å³ in g/cm³."""


def duration(seconds: float) -> str:
    """A time in seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
