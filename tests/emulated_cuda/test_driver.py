"""The emulated CUDA driver does what CUDA does, as seen by the real pycuda and cuda-bindings.

The checks are in `scripts/` and run in processes of their own. Covered here: contexts and threads,
copies, mapped memory, streams, events, host functions, graphs, settings, and the report.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cache import once
from tests.emulated_cuda import build, run
from tests.emulated_cuda.build import CannotBuild
from tests.emulated_cuda.checks import SCRIPTS, Prepared, prepare


@pytest.fixture(scope="module")
def emulated() -> Prepared:
    try:
        return prepare()
    except CannotBuild as error:
        pytest.skip(str(error))


def test_command_line(emulated: Prepared) -> None:
    options = ("--kernels", str(SCRIPTS / "kernels.cu"), "--architecture", "89")
    script = "import pycuda.autoinit as cuda; print(cuda.device.name())"
    command = [sys.executable, str(run.__file__), *options, "--", "python", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "Emulated CUDA device sm_89\n", done.stderr


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBuild, match=r"no g\+\+; install one with: apt-get install g\+\+"):
        build.build(tmp_path)


def test_a_part_is_built_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(target)
        time.sleep(0.05)  # for the others to arrive
        (target / "part").touch()

    with ThreadPoolExecutor(4) as workers:
        asked = [workers.submit(once, tmp_path / "part-1", make) for _ in range(4)]
    assert {future.result() for future in asked} == {tmp_path / "part-1"}
    assert len(made) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-1", "part.lock"]


@pytest.mark.parametrize("streams", ["lazy", "eager"])
def test_checks(emulated: Prepared, streams: str) -> None:
    emulated.check("contexts", "memory", "streams", "graphs", streams=streams)


def test_integrated_device(emulated: Prepared) -> None:
    emulated.check("integrated", integrated=True, memory_mb=64, architecture=89)


@pytest.mark.parametrize("architecture", [75, 90, 110])
def test_architectures(emulated: Prepared, architecture: int) -> None:
    emulated.check("another_architecture", architecture=architecture)


def test_lost_context(emulated: Prepared) -> None:
    emulated.check("lost_context", fail_after_launches=2)


def test_report(emulated: Prepared) -> None:
    found = emulated.report("leaves_things_behind")
    assert found["live"] == {
        "device_allocations": 1,
        "device_bytes": 1000,
        "pinned_allocations": 1,
        "pinned_bytes": 10,
        "streams": 1,
        "events": 1,
        "graphs": 1,
        "graph_executables": 1,
        "modules": 0,
        "contexts": 1,
        "primary_context_references": 1,
    }
    assert found["totals"]["graph_launches"] == 3
    assert found["totals"]["graph_copies"] == 3
    assert found["totals"]["copies"] == 1
    assert found["totals"]["memsets"] == 0
    assert found["totals"]["kernel_launches"] == 0


def test_report_of_the_moment(emulated: Prepared) -> None:
    script = (
        "import ctypes, json, pycuda.autoinit, pycuda.driver as cuda;"
        "kept = cuda.mem_alloc(40);"
        "report = ctypes.CDLL('libcuda.so.1').emulated_cuda_report;"
        "report.restype = ctypes.c_char_p;"
        "print(json.loads(report())['live']['device_bytes'])"
    )
    assert emulated.python("-c", script).stdout == "40\n"


def test_settings_are_checked(emulated: Prepared) -> None:
    script = "from cuda.bindings import driver; print(driver.cuInit(0)[0].name)"
    done = emulated.python("-c", script, streams="sometimes")
    assert done.stdout == "CUDA_ERROR_INVALID_VALUE\n"
    assert 'EMULATED_CUDA_STREAMS is "sometimes"; it must be lazy or eager' in done.stderr
    with pytest.raises(TypeError, match="no such setting: colour"):
        run.environment(emulated.installation, emulated.kernels, colour="blue")


def test_every_call_can_be_logged(emulated: Prepared) -> None:
    script = "from cuda.bindings import driver; driver.cuInit(0); driver.cuDeviceGet(1)"
    done = emulated.python("-c", script, log=True)
    assert "cuInit -> CUDA_SUCCESS" in done.stderr
    assert "cuDeviceGet -> CUDA_ERROR_INVALID_DEVICE" in done.stderr


def test_functions_that_pycuda_links_and_the_driver_lacks(emulated: Prepared) -> None:
    script = "import pycuda.autoinit, pycuda.driver as cuda; cuda.Context.get_cache_config()"
    done = emulated.python("-c", script)
    assert "[emulated CUDA] cuCtxGetCacheConfig: not emulated" in done.stderr
    assert "not supported (emulated driver)" in done.stderr
