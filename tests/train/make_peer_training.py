"""Makes peer_start.dp and peer_end.dp: a small model before and after eight training steps by DeePMD-kit.

Run here, with the path of DeePMD-kit's program: `python -m tests.train.make_peer_training /opt/peer/bin/dp`
(made with deepmd-kit 3.2.0, torch 2.11).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from dphpc.model.model_file import write_model
from dphpc.train.initial import initial_model
from dphpc.train.schema import parse_input
from dphpc.train.statistics import Statistics
from tests.train.systems import peer_input, write_system

HERE = Path(__file__).parent


def main(dp: str) -> None:
    davg, dstd = np.array([0.05, 0.04]), np.array([[0.2, 0.1], [0.25, 0.12]])
    statistics = Statistics(davg, dstd, np.array([-3.0, -2.9]), np.ones(2))
    model = initial_model(parse_input(peer_input()).model, statistics, seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_system(folder / "one", 32, 1, seed=9)
        write_model(model, folder / "start.dp")
        (folder / "in.json").write_text(json.dumps(peer_input()))
        commands = (
            ["convert-backend", "start.dp", "start.pth"],
            ["--pt", "train", "in.json", "--init-frz-model", "start.pth", "--skip-neighbor-stat"],
            ["--pt", "freeze", "-o", "end.pth"],
            ["convert-backend", "end.pth", "end.dp"],
        )
        env = {"PATH": f"{Path(dp).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        for command in commands:
            subprocess.run([dp, *command], cwd=folder, check=True, env=env)
        print((folder / "lcurve.out").read_text())
        shutil.copy(folder / "start.dp", HERE / "peer_start.dp")
        shutil.copy(folder / "end.dp", HERE / "peer_end.dp")


if __name__ == "__main__":
    main(sys.argv[1])
