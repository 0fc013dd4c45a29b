"""Makes the kit for a device that has a GPU and neither network nor compiler.

    python tests/gpu/kit.py [--python 3.12] [--cuda 13.0] [--sample] [--out .gpu]

No GPU is needed here, but the device's version of Python, and torch in this environment. The kit
lies in the root of the sources and travels with them; ``bash .gpu/run.sh`` runs it:

    run.sh      checks Python and machine, then starts tests/gpu/run.py
    kit.json    what it was made for, and from which commit
    wheels/     pycuda, compiled here, and what the tests need and devices often lack
    bundles.tar.xz of tests/gpu/bundles.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.emulated_cuda.build import OLDEST_CUDA, CannotBuild, pip, pycuda_wheel  # noqa: E402
from tests.gpu import bundles, kernels  # noqa: E402
from tests.gpu.machine import commit  # noqa: E402

from fewstep.runtime.errors import FewstepError  # noqa: E402

LIMIT_BYTES = 12_000_000
"""Of a kit without the sample: it travels beside the sources."""
PACKAGES = ("pydantic", "hypothesis", "filelock")
"""With what they require; a device brings NumPy, pytest, numba, onnxruntime and cuda-bindings."""


def make(
    out: Path, python: Path, cuda: str = OLDEST_CUDA, *, with_sample: bool = False
) -> dict[str, int]:
    """Make the kit in the place of any that is there.

    Args:
        out: the kit's folder.
        python: an interpreter of the device's version, with pip and headers.
        cuda: CUDA version whose drivers, and later ones, are to load pycuda and the kernels.
        with_sample: pack the exported sample too; the kit may then be larger.

    Returns:
        Bytes of every file.

    Raises:
        CannotBuild: a tool or the package index is missing, or the kit is too large.
        FewstepError: a bundle cannot be made.
    """
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".gpu-") as folder:
        kit = Path(folder) / "kit"
        wheels = kit / "wheels"
        wheels.mkdir(parents=True)
        with ThreadPoolExecutor(1) as other:  # a compiler, while this process exports
            pycuda = other.submit(pycuda_wheel, python, cuda)
            _download(python, wheels)
            made = Path(folder) / "bundles"
            compiled = kernels.compile_for(cuda, bundles.CAPABILITIES)
            bundles.make(made, compiled, with_sample=with_sample)
            shutil.copy(pycuda.result(), wheels)
        shutil.make_archive(str(kit / "bundles"), "xztar", made)
        shutil.copy(Path(__file__).with_name("run.sh"), kit)
        about = {"python": _version(python), "machine": platform.machine(), "cuda": cuda}
        about["commit"] = commit() or "unknown"
        (kit / "kit.json").write_text(json.dumps(about, indent=1) + "\n")
        sizes = {path.name: path.stat().st_size for path in kit.rglob("*") if path.is_file()}
        total = sum(sizes.values())
        if total > LIMIT_BYTES and not with_sample:
            raise CannotBuild(
                f"the kit has {total / 2**20:.1f} MB, more than {LIMIT_BYTES / 2**20:.1f}: "
                + ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sizes.items())
            )
        shutil.rmtree(out, ignore_errors=True)
        kit.rename(out)
    return sizes


def find_python(version: str) -> Path:
    """An interpreter of this version: this one, one on PATH, or one of pyenv's.

    Raises:
        CannotBuild: there is none.
    """
    for candidate in _candidates(version):
        if candidate.is_file() and _version(candidate) == version:
            return candidate
    raise CannotBuild(
        f"there is no Python {version} here; install it, such as with: apt-get install "
        f"python{version}-dev python{version}-venv, or: pyenv install {version}"
    )


def _candidates(version: str) -> Iterator[Path]:
    yield Path(sys.executable)
    for folder in os.get_exec_path():
        yield Path(folder) / f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)


def _version(python: Path) -> str:
    """Such as 3.12; empty if it does not run, as pyenv's stand-ins for what is not chosen."""
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _download(python: Path, wheels: Path) -> None:
    """The packages for an interpreter, in the versions that are tested."""
    options = ("download", "--quiet", "--only-binary=:all:", f"--dest={wheels}")
    pip(*options, f"--constraint={ROOT / 'constraints.txt'}", *PACKAGES, python=python)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _require_versions(options.python, options.cuda)
        python = find_python(options.python)
        sizes = make(options.out, python, options.cuda, with_sample=options.sample)
    except (CannotBuild, FewstepError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size / 2**20:6.2f} MB  {name}")
    print(f"{sum(sizes.values()) / 2**20:6.2f} MB  {options.out}, for Python {options.python}")
    return 0


def _require_versions(python: str, cuda: str) -> None:
    """Whether both are versions that a kit can be for.

    Raises:
        CannotBuild: one is not.
    """
    numbers = re.fullmatch(r"3\.(\d+)", python)
    if numbers is None or int(numbers[1]) < 10:
        raise CannotBuild(f"PYTHON_VERSION has to be 3.10 or newer, such as 3.12; got {python}")
    if re.fullmatch(r"1[23]\.\d", cuda) is None:
        raise CannotBuild(
            "CUDA_VERSION has to be a version of CUDA 12 or 13 with its minor number, as "
            f"nvidia-smi shows it for the device's driver, such as 12.6 or 13.0; got {cuda}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Make the kit for the CUDA tests on a GPU.")
    parser.add_argument(
        "--python", default=_version(Path(sys.executable)), help="the device's version"
    )
    parser.add_argument("--cuda", default=OLDEST_CUDA, help="oldest CUDA version of its driver")
    parser.add_argument("--sample", action="store_true", help="pack the exported Fashion sample")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu", help="the kit's folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
