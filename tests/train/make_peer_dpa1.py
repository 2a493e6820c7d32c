"""Makes peer_NAME_start.dp, peer_NAME_end.dp: small dpa1 models before and after eight steps by DeePMD-kit's Adam.

Run as `make_peer_training`: `python -m tests.train.make_peer_dpa1 /opt/peer/bin/dp [NAME …]` (made with deepmd-kit
3.2.0, torch 2.11).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from dphpc.model.model_file import write_model
from dphpc.train.initial import initial_model
from dphpc.train.schema import parse_input
from dphpc.train.statistics import Statistics
from tests.train.make_peer_training import HERE, run
from tests.train.systems import PEER_FORMS, peer_dpa1_input, write_system


def make(dp: str, name: str) -> None:
    """The two files of one of the forms."""
    given = peer_dpa1_input(name)
    statistics = Statistics(np.zeros(2), np.array([[0.2, 0.1], [0.25, 0.12]]), np.array([-3.0, -2.9]))
    model = initial_model(parse_input(given).model, statistics, seed=0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_system(folder / "one", 32, 1, seed=9)
        write_model(model, folder / "start.dp")
        (folder / "adam.json").write_text(json.dumps(given))
        run(folder, dp, "convert-backend", "start.dp", "start.pth")
        run(folder, dp, "--pt", "train", "adam.json", "--init-frz-model", "start.pth", "--skip-neighbor-stat")
        run(folder, dp, "--pt", "freeze", "-o", "end.pth")
        run(folder, dp, "convert-backend", "end.pth", "end.dp")
        print((folder / "lcurve.out").read_text())
        for end in ("start", "end"):
            shutil.copy(folder / f"{end}.dp", HERE / f"peer_{name}_{end}.dp")


def main(dp: str, *names: str) -> None:
    for name in names or PEER_FORMS:
        make(dp, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
