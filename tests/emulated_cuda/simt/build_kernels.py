"""Compile a CUDA C++ kernel file for the host, so that tests can run it without a GPU.

    python tests/emulated_cuda/simt/build_kernels.py kernels.cu kernels.so

The source is the one that NVRTC compiles. It goes through the preprocessor with CUDA's own words
left standing; then three things are done to its text, none of which moves a line:

- `extern __shared__ T name[];` becomes a pointer to the one array of dynamic shared memory;
- `__shared__ alignas(n)` becomes `__shared__ __align__(n)`, an order of words that g++ accepts;
- at the end every `extern "C" __global__` function is exported as `emulated_kernel_<name>`, see
  `emulated_kernel.h`.

Everything else is macros and functions in the headers beside this file. System headers are out of
reach of the kernel file, as they are with NVRTC; `cuda_fp16.h` and `math_constants.h` are here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_STANDARD = "-std=c++17"

_BALANCED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_LAUNCH_BOUNDS = re.compile(rf"__launch_bounds__\s*{_BALANCED}")
_ALIGNED_SHARED = re.compile(r"(__shared__\s+)alignas(?=\s*\()")
_DYNAMIC_SHARED = re.compile(
    r"\b(?:extern\s+__shared__|__shared__\s+extern)\s+"
    rf"(?:(?:alignas|__align__)\s*{_BALANCED}\s*)?"
    r"(?P<type>[^;(){}=\[\]]+?)\s*\b(?P<name>\w+)\s*\[\s*\]\s*;"
)
_KERNEL = re.compile(r"\b__global__\b[^({;]*?(?P<name>\w+)\s*\(")

_OPTIONS = (
    _STANDARD,
    "-O2",
    "-g",
    "-Wall",
    "-Wno-unknown-pragmas",  # #pragma unroll
    "-Wno-sign-compare",  # int against blockDim.x
    "-ffp-contract=off",  # as --fmad=false: the same bits as on the device
    "-fno-strict-aliasing",  # kernels view one buffer as several types, and nvcc lets them
    "-fno-exceptions",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",  # every library keeps its own block, fibers and shared memory …
    "-fno-gnu-unique",  # … and can be unloaded
)


class BuildError(RuntimeError):
    """The kernel file cannot be compiled for the host; the message says why."""


class CompilerMissing(BuildError):
    """There is no g++; the message says how to get it."""


def build_kernels(
    source: Path, output: Path, include: Sequence[Path] = (), options: Sequence[str] = ()
) -> Path:
    """Compile the kernels of ``source``, and of the files it includes, to a shared library.

    Args:
        source: a ``.cu`` file.
        output: the library to write. It appears, or is replaced, only if all went well.
        include: folders in which to look for included files, besides that of the includer.
        options: further options for g++.

    Returns:
        ``output``.

    Raises:
        CompilerMissing: g++ is not installed.
        BuildError: the source does not compile, or has no ``extern "C" __global__`` function.
    """
    text = _preprocess(source, include)
    names = _kernel_names(text, source)
    text = _rewrite_shared(text, source)
    exports = "".join(f"SIMT_EXPORT({name})\n" for name in names)
    unit = f'#include "simt.h"\n{text}\n# 1 "exports of {source.name}"\n{exports}'
    _compile(unit, output, options)
    return output


def _preprocess(source: Path, include: Sequence[Path]) -> str:
    """The text with its includes and macros resolved, and markers of files and lines."""
    if not source.is_file():
        raise BuildError(f"there is no kernel file {source}")
    folders = [f"-I{folder}" for folder in (_HERE, *include)]
    command = ["-E", _STANDARD, "-nostdinc", "-nostdinc++", *folders, "-x", "c++", str(source)]
    return _run_compiler(command, source.name)


def _kernel_names(text: str, source: Path) -> list[str]:
    """The kernels in order of appearance; templates are left to those that call them."""
    names: dict[str, None] = {}  # a set that keeps the order
    text = _LAUNCH_BOUNDS.sub("", text)
    for match in _KERNEL.finditer(text):
        before = _declaration_before(text, match.start())
        if re.search(r"\btemplate\b", before):
            continue
        if not re.search(r'\bextern\s*"C"', before):
            raise BuildError(
                f'{source.name}: kernel {match["name"]} is not declared extern "C" by itself; '
                'write extern "C" before its __global__, so that it is found by its name'
            )
        names[match["name"]] = None
    if not names:
        raise BuildError(f'{source.name} has no extern "C" __global__ function')
    return list(names)


def _declaration_before(text: str, end: int) -> str:
    """What stands before ``end`` in its declaration, without the preprocessor's line markers."""
    begin = max(text.rfind(mark, 0, end) for mark in ";{}") + 1
    return re.sub(r"^#.*$", "", text[begin:end], flags=re.MULTILINE)


def _rewrite_shared(text: str, source: Path) -> str:
    text = _DYNAMIC_SHARED.sub(_point_at_dynamic_shared, text)
    text = _ALIGNED_SHARED.sub(r"\1__align__", text)
    left = re.search(r"\b(?:extern\s+__shared__|__shared__\s+extern)\b[^;]*", text)
    if left:
        raise BuildError(
            f"{source.name}: cannot make sense of {left[0]!r}; write it as "
            "extern __shared__ type name[]; with one name"
        )
    return text


def _point_at_dynamic_shared(match: re.Match[str]) -> str:
    pointer = " ".join(match["type"].split()) + "*"
    lines = "\n" * match[0].count("\n")
    return (
        f"{pointer} const {match['name']} = "
        f"reinterpret_cast<{pointer}>(simt::dynamic_shared);{lines}"
    )


def _compile(text: str, output: Path, options: Sequence[str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{output.stem}-", suffix=".so", dir=output.parent)
    os.close(handle)
    temporary = Path(name)
    folders = [f"-I{_HERE}", f"-I{_HERE.parent}"]
    try:
        _run_compiler(
            [*_OPTIONS, *folders, *options, "-x", "c++", "-", "-o", name], output.name, text
        )
        temporary.chmod(0o755)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _run_compiler(arguments: Sequence[str], what: str, text: str | None = None) -> str:
    compiler = shutil.which("g++")
    if compiler is None:
        raise CompilerMissing(
            "g++ is needed to compile kernels for the host and is not on PATH; "
            "install it: apt-get install g++"
        )
    done = subprocess.run(
        [compiler, *arguments], input=text, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0:
        raise BuildError(f"g++ does not compile {what}:\n{_first_lines(done.stderr)}")
    sys.stderr.write(done.stderr)  # warnings
    return done.stdout


def _first_lines(messages: str, most: int = 40) -> str:
    lines = messages.splitlines()
    more = [f"… and {len(lines) - most} more lines"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)


def main() -> None:
    """Build one file from the command line."""
    parser = argparse.ArgumentParser(description="Compile a CUDA C++ kernel file for the host.")
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("-I", dest="include", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    try:
        print(build_kernels(arguments.source, arguments.output, arguments.include))
    except BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
