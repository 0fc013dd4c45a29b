"""A kernel that takes the GPU's context along: one clear error, in every later call too.

In a process of its own, which is lost to the GPU afterwards. A real kernel is given an address that
nothing is at; the emulated driver, which would end the process for that, is told to fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.devices.cuda_driver import compute_capability, cuda_version
from fewstep.runtime.devices.cuda_memory import CudaBuffer
from fewstep.runtime.errors import DeviceLostError, FewstepError
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.cubins import load_cubin

_ROOT = Path(__file__).parents[2]
_NOWHERE = 0x1000
_ILLEGAL_ADDRESS = 700


@pytest.fixture(scope="module")
def seen(emulated: bool, tiny_cuda_bundle: Path) -> dict[str, list[str]]:
    """What the process saw, in its order."""
    fail = {"EMULATED_CUDA_FAIL_AFTER_LAUNCHES": "1"}
    fail |= {"EMULATED_CUDA_FAIL_WITH": str(_ILLEGAL_ADDRESS), "EMULATED_CUDA_REPORT": ""}
    paths = [str(_ROOT / folder) for folder in ("export", "runtime", "calibration")]
    path = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, str(tiny_cuda_bundle)],
        env=os.environ | {"PYTHONPATH": path} | (fail if emulated else {}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_first_error_says_what_failed_and_what_to_do(seen: dict[str, list[str]]) -> None:
    (first,) = seen["first"]
    assert first.startswith("CUDA failed waiting for the GPU: ")
    assert first.endswith("this process cannot use the GPU any more, start a new one")


def test_every_later_use_says_that_it_was_lost_before(seen: dict[str, list[str]]) -> None:
    assert len(seen["later"]) == 4
    for each in seen["later"]:
        assert each == f"the GPU was lost before in this process: {seen['first'][0]}"


def test_closing_works_and_so_does_the_cpu(seen: dict[str, list[str]]) -> None:
    assert seen["closed"] == ["", ""]
    assert seen["on_cpu"] == [""]


def _lose(bundle: Path) -> dict[str, list[str]]:
    cubin = load_cubin(Bundle.read(bundle), compute_capability(), cuda_version())
    device, other = CudaDevice(cubin), CudaDevice(cubin)
    workspace = device.workspace({"error": BufferSpec((1,), "int32", "status")})

    emulated = "EMULATED_CUDA_KERNELS" in os.environ

    def use() -> None:
        nowhere = CudaBuffer(_NOWHERE, (1, 4), "int32")
        if emulated:
            nowhere = CudaBuffer(workspace["error"].pointer, (1, 1), "int32")
        mask = CudaBuffer(nowhere.pointer, nowhere.shape, np.uint8)
        buffers = {"given": nowhere, "tokens": nowhere, "mask": mask, "error": workspace["error"]}
        for _ in range(1 + emulated):  # under the emulated driver the second one fails
            device.launch("initial_tokens", codebook_size=8, mask_token=8, **buffers)
        device.synchronize()

    def generate() -> None:
        with Generator.open(bundle, device="cpu", threads=1) as generator:
            generator.generate(class_ids=[0], steps=1)

    first = [_outcome(use)]
    later = [_outcome(each) for each in (use, device.synchronize, other.require)]
    later.append(_outcome(lambda: Generator.open(bundle, device="cuda", threads=1).close()))
    closed = [_outcome(each.close) for each in (workspace, device)]
    return {"first": first, "later": later, "closed": closed, "on_cpu": [_outcome(generate)]}


def _outcome(use: object) -> str:
    assert callable(use)
    try:
        use()
    except DeviceLostError as error:
        return str(error)
    except FewstepError as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    print(json.dumps(_lose(Path(sys.argv[1]))))
