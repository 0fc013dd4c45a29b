"""Runs the files in `scripts/` under the emulated driver, for the tests beside this file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.cache import key_of, once
from tests.emulated_cuda.build import (
    CannotBuild,
    Installation,
    build,
    default_cache,
    host_kernels,
)
from tests.emulated_cuda.run import environment

SCRIPTS = Path(__file__).parent / "scripts"
_KERNELS = SCRIPTS / "kernels.cu"

_PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # none is needed, and they take a while

# Name, architecture, options of the compiler.
_CUBINS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("kernels", 87, ()),
    ("stale", 87, ("-DSTALE",)),
    ("more", 87, ("-DMORE",)),
    ("sm_75", 75, ()),
    ("sm_86", 86, ()),
    ("sm_90", 90, ()),
    ("sm_110", 110, ()),
)


@dataclass(frozen=True)
class Prepared:
    """All that was built."""

    installation: Installation
    kernels: Path
    cubins: Path
    scripts: Path = SCRIPTS

    def python(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run Python under the emulated driver."""
        variables = environment(self.installation, self.kernels, **settings)
        return subprocess.run(
            [sys.executable, *arguments],
            env={**variables, "CHECK_CUBINS": str(self.cubins), **_PYTEST},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def check(self, *names: str, **settings: object) -> None:
        """Run the tests in files of `scripts/`, all in one process."""
        # Nothing of the project's own settings and fixtures.
        options = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--confcutdir={SCRIPTS}")
        files = [str(SCRIPTS / f"{name}.py") for name in names]
        done = self.python("-m", "pytest", *options, *files, **settings)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]

    def report(self, name: str, **settings: object) -> dict[str, Any]:
        """Run a script that must succeed; returns the report of its end."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.json"
            done = self.python(str(SCRIPTS / f"{name}.py"), report=path, **settings)
            assert done.returncode == 0, done.stdout + done.stderr
            found: dict[str, Any] = json.loads(path.read_text())
        return found


@cache
def prepare() -> Prepared:
    """Build what is missing. Raises CannotBuild."""
    versions = [_version(package) for package in ("cuda-bindings", "nvidia-cuda-nvrtc")]
    installation = build()
    key = key_of([*versions, repr(_CUBINS), _KERNELS.read_bytes()])
    cubins = once(default_cache() / f"cubins-{key}", _write_cubins)
    return Prepared(installation, host_kernels(_KERNELS), cubins)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        message = f"there is no {package}; install it with: pip install {package}"
        raise CannotBuild(message) from error


def _write_cubins(folder: Path) -> None:
    for name, architecture, options in _CUBINS:
        (folder / f"{name}.cubin").write_bytes(_compiled(architecture, options))


def _compiled(architecture: int, options: tuple[str, ...]) -> bytes:
    from cuda.bindings import nvrtc

    def value(returned: tuple[Any, ...]) -> Any:
        assert int(returned[0]) == 0, returned[0]
        return returned[1] if len(returned) == 2 else None

    program = value(nvrtc.nvrtcCreateProgram(_KERNELS.read_bytes(), b"kernels.cu", 0, [], []))
    flags = [option.encode() for option in (f"-arch=sm_{architecture}", *options)]
    value(nvrtc.nvrtcCompileProgram(program, len(flags), flags))
    image = bytes(int(value(nvrtc.nvrtcGetCUBINSize(program))))
    value(nvrtc.nvrtcGetCUBIN(program, image))
    return image
