"""Build what runs pycuda on a machine without a GPU: pycuda itself and the emulated CUDA driver.

Everything lands in a cache folder, never in the running environment, and each part in a folder
named after what went into it, so that an edit of the driver does not rebuild pycuda:

- `pycuda-<key>`: NVIDIA's headers from their wheels, and pycuda compiled against them and against
  an empty stand-in for libcuda. Minutes, and needs the package index.
- `driver-<key>`: `libcuda.so.1` compiled from `driver/`. Seconds.
- `kernels-<key>`: the host build of a kernel file.

A part is built under a temporary name and then renamed, with a lock around it, so any number of
processes may ask at once and none ever sees half of one.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.emulated_cuda.simt.build_kernels import build_kernels

PYCUDA = "pycuda==2026.1"
HEADERS = ("nvidia-cuda-runtime==13.5.37", "nvidia-cuda-profiler-api==13.5.25")
HERE = Path(__file__).resolve().parent

# Nobody measures pycuda's own speed under an emulated driver, and unoptimised code compiles sooner.
_PYCUDA_FLAGS = "-O0 -g0"
# Contents of the file in which pycuda's setup looks for settings.
_PYCUDA_SETUP = """\
CUDA_INC_DIR = [{include!r}]
CUDADRV_LIB_DIR = [{library!r}]
CUDA_ENABLE_CURAND = False
"""
_DRIVER_FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-fvisibility=hidden")
_DRIVER_WARNINGS = ("-Wall", "-Wextra", "-Wno-deprecated-declarations")


class CannotBuild(Exception):
    """Something outside the repository is missing; the message names it and the remedy."""


@dataclass(frozen=True)
class Installation:
    """Where the built parts are."""

    driver: Path  # folder that holds libcuda.so.1, for LD_LIBRARY_PATH
    pycuda: Path  # folder that holds the package pycuda, for PYTHONPATH
    include: Path  # folder that holds cuda.h and cuda_fp16.h


def build(cache: Path | None = None) -> Installation:
    """Build what is not in the cache yet. Raises CannotBuild, and CalledProcessError when the
    driver's own sources do not compile."""
    _require_tools()
    folder = cache or default_cache()
    pycuda = once(folder / f"pycuda-{_pycuda_key()}", _build_pycuda)
    driver = once(
        folder / f"driver-{_driver_key(pycuda)}", lambda target: _build_driver(target, pycuda)
    )
    return Installation(driver, pycuda / "packages", _include(pycuda))


def host_kernels(source: Path, cache: Path | None = None) -> Path:
    """The host build of a kernel file, made again when a file beside it or the emulation changed.

    Raises:
        BuildError: (of ``simt/build_kernels.py``) it does not compile.
    """
    beside = sorted(path for end in ("*.cu", "*.cuh", "*.h") for path in source.parent.glob(end))
    emulation = sorted(path for path in (HERE / "simt").iterdir() if path.suffix in (".h", ".py"))
    contents = [path.read_bytes() for path in (*beside, *emulation, HERE / "emulated_kernel.h")]
    folder = (cache or default_cache()) / f"kernels-{key_of([source.name, *contents])}"

    def make(target: Path) -> None:
        say(f"building {source.name} for the host")
        build_kernels(source, target / "kernels.so")

    return once(folder, make) / "kernels.so"


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/fewstep/emulated-cuda`, below `~/.cache` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fewstep" / "emulated-cuda"


def say(message: str) -> None:
    """Report progress without mixing it into a command's output."""
    print(f"emulated CUDA: {message}", file=sys.stderr, flush=True)


def _require_tools() -> None:
    if shutil.which("g++") is None:
        raise CannotBuild("there is no g++; install one with: apt-get install g++")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise CannotBuild(
            f"there is no {header}; install Python's headers with: apt-get install python3-dev"
        )
    if importlib.util.find_spec("pip") is None:
        raise CannotBuild(f"there is no pip; install it with: {sys.executable} -m ensurepip")


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """Fill the folder `target` unless it exists; whoever else asks meanwhile waits for it."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix="building-") as temporary:
                fresh = Path(temporary) / "new"
                fresh.mkdir()
                make(fresh)
                fresh.rename(target)
    return target


def key_of(parts: Iterable[str | bytes]) -> str:
    """A name for what was made of these parts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def _pycuda_key() -> str:
    python = str(sysconfig.get_config_var("SOABI"))
    return key_of([PYCUDA, *HEADERS, _PYCUDA_FLAGS, _PYCUDA_SETUP, python])


def _driver_key(pycuda: Path) -> str:
    flags = [*_DRIVER_FLAGS, *_DRIVER_WARNINGS]
    return key_of([pycuda.name, *flags, *(path.read_bytes() for path in _driver_sources("*"))])


def _driver_sources(pattern: str) -> list[Path]:
    return [*sorted((HERE / "driver").glob(pattern)), HERE / "emulated_kernel.h"]


def _include(pycuda: Path) -> Path:
    return pycuda / "headers" / "nvidia" / "cu13" / "include"


def _build_pycuda(target: Path) -> None:
    say("fetching NVIDIA's headers")
    _pip("install", "--no-deps", "--target", str(target / "headers"), *HEADERS)
    say(f"building {PYCUDA} (minutes, once)")
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        wheel = _build_wheel(target, Path(work))
        # pycuda.driver needs NumPy alone. What pycuda.gpuarray needs is left out: it compiles
        # kernels with nvcc when it runs, which no machine without a CUDA toolkit can do.
        _pip("install", "--no-deps", "--no-compile", "--target", str(target / "packages"), wheel)


def _build_wheel(target: Path, work: Path) -> str:
    """pycuda's wheel, made in the folder `work`; its setup takes settings from a file at home."""
    stub = work / "stub" / "libcuda.so"
    stub.parent.mkdir()
    _compile(["-shared", "-fPIC", "-x", "c++", os.devnull, "-Wl,-soname,libcuda.so.1"], stub)
    setup = _PYCUDA_SETUP.format(include=str(_include(target)), library=str(stub.parent))
    (work / ".aksetup-defaults.py").write_text(setup)
    home = Path.home()
    settings = {
        "HOME": str(work),
        # pip's own configuration and cache stay where they are.
        "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME") or str(home / ".config"),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(home / ".cache"),
        "CC": "g++",
        "CXX": "g++",
        "CFLAGS": _PYCUDA_FLAGS,
        # The stand-in defines nothing, and must all the same be named as a needed library.
        "LDFLAGS": "-Wl,--no-as-needed",
    }
    _pip("wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", str(work), PYCUDA, **settings)
    return str(next(work.glob("pycuda-*.whl")))


def _pip(*arguments: str, **settings: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    found = subprocess.run(
        command,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if found.returncode:
        last = "\n".join(found.stdout.splitlines()[-20:])
        raise CannotBuild(
            f"pip failed (is the package index within reach?); to repeat it: "
            f"{shlex.join(command)}\n{last}"
        )


def _build_driver(target: Path, pycuda: Path) -> None:
    say("building the emulated driver")
    _write_lists(target, pycuda)
    sources = [path for path in _driver_sources("*.cpp") if path.suffix == ".cpp"]
    objects = [target / f"{path.stem}.o" for path in sources]
    options = [*_DRIVER_FLAGS, *_DRIVER_WARNINGS, f"-I{_include(pycuda)}", f"-I{HERE}"]
    options.append(f"-I{target}")
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(lambda s, o: _compile([*options, "-c", str(s)], o), sources, objects))
    library = target / "libcuda.so.1"
    # Symbolic: the driver's calls to itself must not end in another library's functions.
    link = ["-shared", "-Wl,-soname,libcuda.so.1", "-Wl,-Bsymbolic", "-ldl", "-pthread"]
    _compile([*map(str, objects), *link], library)
    (target / "libcuda.so").symlink_to(library.name)
    for path in objects:
        path.unlink()


def _write_lists(target: Path, pycuda: Path) -> None:
    """What the driver's sources include and only pycuda and cuda.h know."""
    symbols = "".join(f"SYMBOL({name})\n" for name in linked_symbols(pycuda))
    (target / "linked_symbols.inc").write_text(symbols)
    header = (_include(pycuda) / "cuda.h").read_text()
    names = re.findall(r"^\s+(CUDA_SUCCESS|CUDA_ERROR_\w+)\s*=\s*\d+", header, re.MULTILINE)
    errors = "".join(f'ERROR({name}, "{_words(name)}")\n' for name in names)
    (target / "error_names.inc").write_text(errors)


def _words(error: str) -> str:
    return error.removeprefix("CUDA_").removeprefix("ERROR_").replace("_", " ").lower()


def linked_symbols(pycuda: Path) -> list[str]:
    """The driver functions that the built pycuda links: all must exist for it to be loaded."""
    extension = next((pycuda / "packages" / "pycuda").glob("_driver*.so"))
    command = ["nm", "-D", "--undefined-only", "--format=posix", str(extension)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    names = (line.split()[0] for line in lines)
    return sorted(name for name in names if name.startswith("cu") and name[2].isupper())


def _compile(arguments: list[str], output: Path) -> None:
    subprocess.run(["g++", *arguments, "-o", str(output)], check=True)
