"""Names in text tables that one part of the program writes and another reads."""

from __future__ import annotations

OF_EACH_ATOM = "atm_devi_f(N)"
"""The last name of a model_devi.out with each atom's deviation: it stands for as many columns as a system has atoms."""
