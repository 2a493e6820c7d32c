"""dphpc slurm as a user runs it, where no Slurm is needed."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_commands import RUN_FILE, TRAINING, write_md_inputs


@pytest.fixture
def slurm(run: Run, tmp_path: Path) -> Run:
    """`slurm("md", "run.yaml")` is `dphpc slurm md run.yaml` on a machine without Slurm."""
    write_md_inputs(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN_FILE + "restart: {every: 100}\n")
    return partial(run, "slurm", PATH=str(tmp_path))


def test_the_script_is_shown_and_written(slurm: Run, process: Run, tmp_path: Path) -> None:
    done = process(
        "slurm", "md", "run.yaml", "--nodes", "2", "-t", "4:00:00", "--account", "chem", "--", "--log-path", "md.log"
    )
    assert "sbatch md.slurm" in done.stderr
    script = (tmp_path / "md.slurm").read_text()
    assert done.stdout == script
    for line in ("#SBATCH --nodes=2 ", "#SBATCH --time=4:00:00 ", "#SBATCH --account=chem ", "##SBATCH --qos=NAME "):
        assert f"\n{line}" in script
    assert "\narguments=(run.yaml --log-path md.log)\n" in script
    assert f'\nexport PATH={Path(sys.executable).parent}:"$PATH"\n' in script
    script = slurm("md", "run.yaml", "--gpus", "2", "-o", "gpus.slurm").stdout
    assert "\n#SBATCH --gpus-per-node=2 " in script
    assert "\n#SBATCH --ntasks-per-node=2 " in script
    slurm("md", "run.yaml", "--scaling", "--ntasks-per-node", "4", "-o", "study.slurm")
    assert "\n#SBATCH --array=0-2%1 " in (tmp_path / "study.slurm").read_text()


def test_mistakes_are_found_before_anything_is_written(slurm: Run, tmp_path: Path) -> None:
    message = slurm("md", "run.yaml", "--submit", status=1).stderr
    assert "there is no sbatch on this machine" in message
    assert "login node" in message
    assert "--nodes" in slurm("md", "run.yaml", "--node", "2", status=2).stderr
    assert "greater than or equal to 1" in slurm("md", "run.yaml", "--nodes", "0", status=2).stderr
    assert "one word" in slurm("md", "run.yaml", "--account", "a b", status=1).stderr
    assert "--time" in slurm("md", "run.yaml", "--time", "foo", status=1).stderr
    assert "as in 64G" in slurm("md", "run.yaml", "--mem", "lots", status=1).stderr
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    assert "'restart' is missing" in slurm("md", "run.yaml", status=1).stderr
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("timestep_fs", "timestep"))
    assert "did you mean 'timestep_fs'" in slurm("md", "run.yaml", "--scaling", status=1).stderr
    (tmp_path / "input.json").write_text('{"modell": {}}')
    assert "did you mean 'model'" in slurm("train", "input.json", status=1).stderr
    (tmp_path / "input.json").write_text(json.dumps(TRAINING))
    assert "data system does not exist" in slurm("train", "input.json", status=1).stderr
    (tmp_path / "learn.yaml").write_text("modles: 4")
    assert "did you mean 'models'" in slurm("learn", "learn.yaml", status=1).stderr
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    (tmp_path / "model.dp").unlink()
    assert "model.dp" in slurm("md", "run.yaml", "--scaling", status=1).stderr
    assert not list(tmp_path.glob("*.slurm"))
