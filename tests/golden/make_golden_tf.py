"""Makes models/NAME.pb of some golden models, and golden_tf.h5: what DeePMD-kit's TensorFlow computes with them.

    /tmp/peer/bin/python tests/golden/make_golden_tf.py

The models are written by the function behind ``dp convert-backend``; the structures are those of golden.h5.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from deepmd.dpmodel.utils.serialization import load_dp_model
from deepmd.infer import DeepPot
from deepmd.tf.utils.serialization import deserialize_to_file

HERE = Path(__file__).parent
NAMES = ("atom_ener_param", "exclude_one_sided", "exclude_two_sided", "float32_fitting", "skip_first_equal")


def main() -> None:
    """Write all files."""
    with h5py.File(HERE / "golden.h5") as golden, h5py.File(HERE / "golden_tf.h5", "w", libver=("v110", "v110")) as out:
        for name in NAMES:
            graph = HERE / "models" / f"{name}.pb"
            deserialize_to_file(str(graph), load_dp_model(str(HERE / "models" / f"{name}.dp")))
            potential = DeepPot(str(graph))
            for structure, given in golden[name].items():
                parameters = {key: given[key][()] for key in ("fparam", "aparam") if key in given}
                cells = given["cells"][()] if "cells" in given else None
                result = potential.eval(given["coords"][()], cells, given["atom_types"][()], atomic=True, **parameters)
                for key, value in zip(("energy", "force", "virial", "atom_energy"), result, strict=False):
                    out[f"{name}/{structure}/{key}"] = np.asarray(value, np.float64)


if __name__ == "__main__":
    main()
