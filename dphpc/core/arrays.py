"""Arrays by the precision of their numbers, for annotations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating]
"""float64 or float32."""
