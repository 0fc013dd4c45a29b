"""Build what runs pycuda on a machine without a GPU: pycuda itself and the emulated CUDA driver.

Everything lands in the tests' cache, never in the running environment, and each part in a folder
named after what went into it, so that an edit of the driver does not rebuild pycuda:

- `pycuda-<key>`: pycuda's wheel, compiled against NVIDIA's headers from their wheels and against an
  empty stand-in for libcuda, and the same unpacked. Minutes, and needs the package index. A real
  driver loads it as well, so `tests/gpu/` packs it for devices that have no compiler.
- `headers-<key>`: the headers that the driver is compiled against.
- `driver-<key>`: `libcuda.so.1` compiled from `driver/`. Seconds.
- `kernels-<key>`: the host build of a kernel file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cache import cache_folder, key_of, once
from tests.emulated_cuda.simt.build_kernels import build_kernels

PYCUDA = "pycuda==2026.1"
OLDEST_CUDA = "13.0"
"""What pycuda is compiled for unless told otherwise: drivers of this version and later load it."""
HEADERS = ("nvidia-cuda-runtime==13.5.37", "nvidia-cuda-profiler-api==13.5.25")
HERE = Path(__file__).resolve().parent

_PYCUDA_FLAGS = "-O2 -g0"
# The stand-in defines nothing, and must all the same be named as a needed library.
_PYCUDA_LINKS = "-Wl,--no-as-needed -s"
# Contents of the file in which pycuda's setup looks for settings.
_PYCUDA_SETUP = """\
CUDA_INC_DIR = {include!r}
CUDADRV_LIB_DIR = [{library!r}]
CUDA_ENABLE_CURAND = False
"""
_INTERPRETER = """
import importlib.util, json, sysconfig
pip = importlib.util.find_spec("pip") is not None
print(json.dumps([sysconfig.get_config_var("SOABI"), sysconfig.get_paths()["include"], pip]))
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
    folder = cache or default_cache()
    pycuda = pycuda_wheel(cache=folder).parent
    headers = once(folder / f"headers-{key_of(HEADERS)}", _fetch_headers)
    include = _include(headers)
    driver = once(
        folder / f"driver-{_driver_key(pycuda, headers)}",
        lambda target: _build_driver(target, pycuda, include),
    )
    return Installation(driver, pycuda / "packages", include)


def pycuda_wheel(
    python: Path = Path(sys.executable), cuda: str = OLDEST_CUDA, cache: Path | None = None
) -> Path:
    """pycuda's wheel for an interpreter; unpacked, it lies in ``packages`` beside the wheel.

    Args:
        python: the interpreter, with pip and Python's headers.
        cuda: whose headers it is compiled against, as ``13.0``. It loads with drivers of this
            version and later.
        cache: where parts are kept.

    Raises:
        CannotBuild: a tool is missing, or the package index.
    """
    abi = _require_tools(python)
    headers = _pycuda_headers(cuda)
    key = key_of([PYCUDA, *headers, _PYCUDA_FLAGS, _PYCUDA_LINKS, _PYCUDA_SETUP, abi])
    part = once(
        (cache or default_cache()) / f"pycuda-{key}",
        lambda target: _build_pycuda(target, python, headers),
    )
    return next(part.glob("pycuda-*.whl"))


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
    """The parts' folder in the tests' cache."""
    return cache_folder() / "emulated-cuda"


def say(message: str) -> None:
    """Report progress without mixing it into a command's output."""
    print(f"emulated CUDA: {message}", file=sys.stderr, flush=True)


def _require_tools(python: Path) -> str:
    """The interpreter's ABI, once everything is there that compiling for it needs."""
    if shutil.which("g++") is None:
        raise CannotBuild("there is no g++; install one with: apt-get install g++")
    told = subprocess.run(
        [python, "-c", _INTERPRETER], check=True, capture_output=True, text=True
    ).stdout
    abi, include, has_pip = json.loads(told)
    header = Path(include) / "Python.h"
    if not header.is_file():
        raise CannotBuild(
            f"there is no {header}; install Python's headers with: apt-get install python3-dev"
        )
    if not has_pip:
        raise CannotBuild(f"there is no pip; install it with: {python} -m ensurepip")
    return str(abi)


def _pycuda_headers(cuda: str) -> tuple[str, str]:
    """The packages of ``cuda.h`` and ``cudaProfiler.h``: until CUDA 12 their names end in it."""
    major = int(cuda.partition(".")[0])
    end = f"-cu{major}" if major < 13 else ""
    return f"nvidia-cuda-runtime{end}=={cuda}.*", f"nvidia-cuda-profiler-api{end}=={cuda}.*"


def _driver_key(pycuda: Path, headers: Path) -> str:
    flags = [*_DRIVER_FLAGS, *_DRIVER_WARNINGS]
    sources = (path.read_bytes() for path in _driver_sources("*"))
    return key_of([pycuda.name, headers.name, *flags, *sources])


def _driver_sources(pattern: str) -> list[Path]:
    return [*sorted((HERE / "driver").glob(pattern)), HERE / "emulated_kernel.h"]


def _fetch_headers(target: Path) -> None:
    say("fetching NVIDIA's headers")
    pip("install", "--no-deps", "--target", str(target), *HEADERS)


def _include(headers: Path) -> Path:
    return next(headers.glob("nvidia/*/include/cuda.h")).parent


def _build_pycuda(target: Path, python: Path, headers: tuple[str, str]) -> None:
    say(f"building {PYCUDA} for {python} (minutes, once)")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        work = Path(folder)
        pip("install", "--no-deps", "--target", str(work / "headers"), *headers, python=python)
        _build_wheel(target, work, python)
    # pycuda.driver needs NumPy alone. What pycuda.gpuarray needs is left out: it compiles kernels
    # with nvcc when it runs, which no machine without a CUDA toolkit can do.
    with zipfile.ZipFile(next(target.glob("pycuda-*.whl"))) as wheel:
        wheel.extractall(target / "packages")


def _build_wheel(target: Path, work: Path, python: Path) -> None:
    """pycuda's wheel, made in the folder `work`; its setup takes settings from a file at home."""
    stub = work / "stub" / "libcuda.so"
    stub.parent.mkdir()
    _compile(["-shared", "-fPIC", "-x", "c++", os.devnull, "-Wl,-soname,libcuda.so.1"], stub)
    include = [str(path) for path in (work / "headers").glob("nvidia/*/include")]
    setup = _PYCUDA_SETUP.format(include=include, library=str(stub.parent))
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
        "LDFLAGS": _PYCUDA_LINKS,
    }
    options = ("--no-deps", "--no-cache-dir", "--wheel-dir", str(target))
    pip("wheel", *options, PYCUDA, python=python, **settings)


def pip(*arguments: str, python: Path = Path(sys.executable), **settings: str) -> None:
    """Run an interpreter's pip, with these environment variables besides. Raises CannotBuild."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
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


def _build_driver(target: Path, pycuda: Path, include: Path) -> None:
    say("building the emulated driver")
    _write_lists(target, pycuda, include)
    sources = [path for path in _driver_sources("*.cpp") if path.suffix == ".cpp"]
    objects = [target / f"{path.stem}.o" for path in sources]
    options = [*_DRIVER_FLAGS, *_DRIVER_WARNINGS, f"-I{include}", f"-I{HERE}"]
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


def _write_lists(target: Path, pycuda: Path, include: Path) -> None:
    """What the driver's sources include and only pycuda and cuda.h know."""
    symbols = "".join(f"SYMBOL({name})\n" for name in linked_symbols(pycuda))
    (target / "linked_symbols.inc").write_text(symbols)
    header = (include / "cuda.h").read_text()
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
