"""GPUs that this machine has not, by the files their drivers and packages would have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dphpc.cli.machine import accelerator

NODES = {
    0: "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\ndrm_render_minor 0\n",
    2: "cpu_cores_count 0\nsimd_count 304\ngfx_target_version 90402\nvendor_id 4098\ndrm_render_minor 129\n",
    10: "cpu_cores_count 0\nsimd_count 80\ngfx_target_version 100300\nvendor_id 4098\ndrm_render_minor 130\n",
    11: "cpu_cores_count 0\nsimd_count 416\ngfx_target_version 90010\nvendor_id 4098\ndrm_render_minor 131\n",
    12: "",  # of a GPU that a container may not see nothing can be read
}
"""`properties` of the nodes that the driver lists: processors and GPUs."""

CUPY = """
class cuda:
    class runtime:
        is_hip = {is_hip}
        def getDeviceCount():
            return {count}
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_amd_gpus_are_listed_without_rocm(tmp_path: Path) -> None:
    assert not any(finding.name == "/dev/kfd" for finding in accelerator(tmp_path))
    sysfs = tmp_path / "sys"
    for number, properties in NODES.items():
        write(sysfs / f"class/kfd/kfd/topology/nodes/{number}/properties", properties)
    write(sysfs / "class/drm/renderD129/device/product_name", "AMD Instinct MI300X\n")
    write(sysfs / "class/drm/renderD129/device/mem_info_vram_total", f"{192 * 2**30}\n")
    write(sysfs / "class/drm/renderD130/device/product_name", "\n")
    gpus = "AMD Instinct MI300X, 196608 MiB, gfx942", "AMD, unnamed, gfx1030", "AMD, unnamed, gfx90a"
    findings = accelerator(tmp_path)
    assert [finding.value for finding in findings if finding.name == "GPU"][-3:] == list(gpus)
    assert [finding.present for finding in findings if finding.name == "/dev/kfd"] == [False]
    write(tmp_path / "dev/kfd", "")
    assert not any(finding.name == "/dev/kfd" for finding in accelerator(tmp_path))


@pytest.mark.parametrize(
    ("package", "module", "found"),
    [
        ("cupy_rocm_7_0", CUPY.format(is_hip=True, count=2), "cupy-rocm-7-0 14.2, for ROCm, sees 2 GPUs"),
        ("cupy_cuda12x", CUPY.format(is_hip=False, count="1 / 0"), "cupy-cuda12x 14.2, for CUDA, sees 0 GPUs"),
        ("cupy", "import a_library_that_is_missing", "cupy 14.2, could not be imported"),
    ],
)
def test_what_cupy_is_for(package: str, module: str, found: str, tmp_path: Path) -> None:
    write(tmp_path / "cupy.py", module)
    write(tmp_path / f"{package}-14.2.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 14.2\n")
    # A PATH without hipcc; packages that come first hide an installed CuPy.
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path), "PATH": str(tmp_path)}
    code = (
        "from dphpc.cli.machine import accelerator\nfor f in accelerator(): print(f.name, f.value, f.present, sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"CuPy|{found}|{'sees 2' in found}" in done.stdout.splitlines()
    assert ("hipcc|not in PATH" in done.stdout) == ("ROCm" in found)
