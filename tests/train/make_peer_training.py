"""Makes peer_start.dp, peer_end.dp, peer_lkf_end.dp: a small model before and after eight steps by DeePMD-kit.

The steps are Adam's and LKF's; of the latter each group of forces has all six atoms, in place of random ones.

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
from tests.train.systems import peer_input, peer_lkf_input, write_system

HERE = Path(__file__).parent


ALL_ATOMS = """
import sys
import numpy as np
from deepmd.main import main
from deepmd.pt.optimizer.KFWrapper import KFOptimizerWrapper
KFOptimizerWrapper._KFOptimizerWrapper__sample = lambda self, n, size, natoms: np.arange(n).reshape(-1, size) % natoms
main(sys.argv[1:])
"""


def main(dp: str) -> None:
    davg, dstd = np.array([0.05, 0.04]), np.array([[0.2, 0.1], [0.25, 0.12]])
    statistics = Statistics(davg, dstd, np.array([-3.0, -2.9]))
    model = initial_model(parse_input(peer_input()).model, statistics, seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_system(folder / "one", 32, 1, seed=9)
        write_system(folder / "six", 6, 2, seed=10)
        write_model(model, folder / "start.dp")
        (folder / "adam.json").write_text(json.dumps(peer_input()))
        (folder / "lkf.json").write_text(json.dumps(peer_lkf_input()))
        (folder / "all_atoms.py").write_text(ALL_ATOMS)
        run(folder, dp, "convert-backend", "start.dp", "start.pth")
        python = str(Path(dp).with_name("python"))
        for given, program, target in (("adam", (dp,), "peer_end"), ("lkf", (python, "all_atoms.py"), "peer_lkf_end")):
            begin = ("--init-frz-model", "start.pth", "--skip-neighbor-stat")
            run(folder, *program, "--pt", "train", f"{given}.json", *begin)
            run(folder, dp, "--pt", "freeze", "-o", "end.pth")
            run(folder, dp, "convert-backend", "end.pth", "end.dp")
            print((folder / "lcurve.out").read_text())
            shutil.copy(folder / "end.dp", HERE / f"{target}.dp")
        shutil.copy(folder / "start.dp", HERE / "peer_start.dp")


def run(folder: Path, program: str, *arguments: str) -> None:
    env = {"PATH": f"{Path(program).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    subprocess.run([program, *arguments], cwd=folder, check=True, env=env)


if __name__ == "__main__":
    main(sys.argv[1])
