"""The kernels as a toolchain of a given CUDA version compiles them, for drivers of that version.

The driver of a Jetson loads no kernels that a later CUDA has compiled, so NVRTC of the device's own
version is fetched, into an environment of its own in the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.cache import key_of, once
from tests.emulated_cuda.build import default_cache, pip

from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.kernels.compile import CompiledKernels

ROOT = Path(__file__).resolve().parents[2]
_CONSTRAINTS = ROOT / "constraints.txt"
_COMPILE = """
import json, sys
from pathlib import Path
from fewstep.runtime.kernels.compile import KernelCompiler
compiler, wanted = KernelCompiler(), json.loads(sys.argv[2])
compiled = compiler.compile([each for each in wanted if each in compiler.known()])
for capability, cubin in compiled.cubins.items():
    (Path(sys.argv[1]) / capability).write_bytes(cubin)
print(json.dumps([compiled.compiler, compiled.sources_sha256]))
"""


def compile_for(cuda: str, capabilities: Sequence[str]) -> CompiledKernels:
    """Compile the kernels for those of the GPUs that this CUDA knows.

    Args:
        cuda: its version, as ``13.0``.
        capabilities: compute capabilities of the GPUs.

    Raises:
        RequestError: no NVRTC of this major version compiles them.
        CannotBuild: the package index is out of reach.
    """
    python = _toolchain(cuda) / "bin" / "python"
    with tempfile.TemporaryDirectory() as folder:
        told = subprocess.run(
            [python, "-c", _COMPILE, folder, json.dumps(capabilities)],
            env=os.environ | {"PYTHONPATH": str(ROOT / "runtime")},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        compiler, sources = json.loads(told)
        cubins = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return CompiledKernels(cubins, compiler, sources, ())


def _toolchain(cuda: str) -> Path:
    """An environment with NVRTC of this version and what the runtime imports."""
    major = cuda.partition(".")[0]
    ends = {"12": "-cu12", "13": ""}
    if major not in ends:
        raise RequestError(choose("CUDA major version", major, ends))
    packages = (
        f"cuda-bindings=={major}.*",
        "cuda-pathfinder>=1.3",
        f"nvidia-cuda-nvrtc{ends[major]}=={cuda}.*",
        f"nvidia-cuda-runtime{ends[major]}=={cuda}.*",
        *("numpy", "pydantic", "typing-extensions"),
    )

    def make(target: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", target], check=True)
        options = ("install", "--quiet", f"--constraint={_CONSTRAINTS}")
        pip(*options, *packages, python=target / "bin" / "python")

    key = key_of([*packages, _CONSTRAINTS.read_bytes(), sys.version])
    return once(default_cache() / f"toolchain-{key}", make)
