"""From kernel source to host library: what is rewritten, found, refused and left behind.

NVRTC, if installed, has to accept the kernels of the tests as well: they are CUDA, not a dialect.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

SIMT = Path(__file__).parent
sys.path.append(str(SIMT))
if TYPE_CHECKING:
    from tests.emulated_cuda.simt import build_kernels as builder
    from tests.emulated_cuda.simt import kernel_library
else:
    import build_kernels as builder
    import kernel_library

Library = kernel_library.KernelLibrary
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is not installed: apt-get install g++"
)

COUNT_UP = """
extern "C" __global__ void count_up(int* out) {
  out[threadIdx.x] += threadIdx.x + 1;
  __syncwarp();
}
"""


def _build(
    folder: Path, text: str, include: Sequence[Path] = (), options: Sequence[str] = ()
) -> Path:
    source = folder / "small.cu"
    source.write_text(text, encoding="utf-8")
    return builder.build_kernels(source, folder / "out" / "small.so", include, options)


def _refusal(folder: Path, text: str) -> str:
    with pytest.raises(builder.BuildError) as caught:
        _build(folder, text)
    return str(caught.value)


# ---- sources -------------------------------------------------------------------------------------


@needs_compiler
def test_spellings_of_kernels(tmp_path: Path) -> None:
    text = """
    #define SIZE (4 * (2 + 2))
    template <int n> __global__ void of_a_template(int* out) { out[0] = n; }
    extern "C" __global__ void first(int* out);
    extern "C" __global__ void first(int* out) { out[0] = 1; }
    extern "C" __global__ void __launch_bounds__(SIZE, (1)) second(int* __restrict__ out) {
      out[0] = 2;
    }
    extern "C" __launch_bounds__(SIZE) __global__
    void
    third (int* out)
    { out[0] = 3; }
    """
    library = Library(_build(tmp_path, text))
    for value, name in enumerate(["first", "second", "third"], start=1):
        out = np.zeros(1, np.int32)
        library.launch(name, (1,), (1,), out)
        assert out[0] == value


@needs_compiler
def test_spellings_of_dynamic_shared_memory(tmp_path: Path) -> None:
    declarations = [
        "extern __shared__ int a[];",
        "extern __shared__ alignas(16) unsigned int b [ ] ;",
        "extern __shared__ __align__(8 * (1 + 1)) volatile float c[];",
        "extern __shared__\n  float4\n  d[];",
        "__shared__ extern unsigned char e[];",
    ]
    names = "abcde"
    tests = "".join(f"out[{i}] = (long long){name};" for i, name in enumerate(names))
    body = " ".join(declarations[1:])
    kernel = f'extern "C" __global__ void addresses(long long* out) {{ {body} {tests} }}'
    out = np.zeros(5, np.int64)
    Library(_build(tmp_path, f"{declarations[0]}\n{kernel}")).launch("addresses", (1,), (1,), out)
    assert out[0] % 128 == 0
    assert set(out) == {out[0]}


@needs_compiler
def test_files_are_found_beside_the_source_and_in_include_folders(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "value.h").write_text("#define VALUE 7\n")
    (tmp_path / "inner.cu").write_text(
        '#include <value.h>\nextern "C" __global__ void inner(int* out) { out[0] = VALUE; }\n'
    )
    out = np.zeros(1, np.int32)
    library = Library(_build(tmp_path, '#include "inner.cu"\n', [tmp_path / "elsewhere"]))
    library.launch("inner", (1,), (1,), out)
    assert out[0] == 7


@needs_compiler
def test_constants_of_the_cuda_header(tmp_path: Path) -> None:
    text = """#include <math_constants.h>
    extern "C" __global__ void constants(float* out) {
      out[0] = CUDART_INF_F;
      out[1] = CUDART_NAN_F;
      out[2] = CUDART_PI_F;
    }"""
    out = np.zeros(3, np.float32)
    Library(_build(tmp_path, text)).launch("constants", (1,), (1,), out)
    np.testing.assert_array_equal(out, np.array([np.inf, np.nan, np.pi], np.float32))


@needs_compiler
def test_the_portable_switch_between_threads(tmp_path: Path) -> None:
    source = (SIMT / "test_kernels" / "barriers.cu").read_text(encoding="utf-8")
    library = Library(_build(tmp_path, source, options=["-DSIMT_USE_UCONTEXT"]))
    counts = np.zeros(40, np.int32)
    library.launch("leave_one_by_one", (1,), (40,), counts)
    np.testing.assert_array_equal(counts[:39], np.arange(39, 0, -1))


# ---- refusals ------------------------------------------------------------------------------------


@needs_compiler
def test_messages_name_the_line_of_an_included_file(tmp_path: Path) -> None:
    (tmp_path / "inner.cu").write_text(
        "__device__ void before() {\n  extern __shared__\n  int words[];\n  words[0] = 1;\n}\n"
        "__device__ int wrong() {\n  return undeclared;\n}\n"
    )
    assert "inner.cu:7:10: error: " in _refusal(tmp_path, f'#include "inner.cu"\n{COUNT_UP}')


@needs_compiler
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__device__ int nothing;", 'small.cu has no extern "C" __global__ function'),
        ("__global__ void lost(int* out) {}", 'kernel lost is not declared extern "C"'),
        ("#include <vector>" + COUNT_UP, "vector: No such file or directory"),
        (COUNT_UP + "__device__ void f() { extern __shared__ int a[], b[]; }", "with one name"),
        (COUNT_UP + "__device__ float f(float* a) { return atomicMax(a, 1.0f); }", "error: "),
    ],
)
def test_refused_sources(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in _refusal(tmp_path, text)


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(builder.BuildError, match=r"there is no kernel file .*absent\.cu"):
        builder.build_kernels(tmp_path / "absent.cu", tmp_path / "absent.so")


def test_a_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(builder.CompilerMissing, match="apt-get install g"):
        _build(tmp_path, COUNT_UP)


@needs_compiler
def test_a_failed_build_leaves_the_old_library(tmp_path: Path) -> None:
    output = _build(tmp_path, COUNT_UP)
    before = output.read_bytes()
    _refusal(tmp_path, COUNT_UP + "wrong")
    assert output.read_bytes() == before
    assert list(output.parent.iterdir()) == [output]


# ---- other ways in -------------------------------------------------------------------------------


@needs_compiler
def test_the_script(tmp_path: Path) -> None:
    (tmp_path / "count_up.cu").write_text(COUNT_UP)
    command = [sys.executable, str(SIMT / "build_kernels.py"), "count_up.cu", "count_up.so"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    out = np.zeros(9, np.int32)
    Library(tmp_path / "count_up.so").launch("count_up", (1,), (9,), out)
    np.testing.assert_array_equal(out, np.arange(1, 10))  # each thread once, of a partial warp


@needs_compiler
def test_arguments_of_another_size_are_refused(tmp_path: Path) -> None:
    library = Library(_build(tmp_path, COUNT_UP))
    with pytest.raises(TypeError, match=r"arguments of \[4\] bytes; declared are \[8\]"):
        library.launch("count_up", (1,), (1,), 1)


def _cuda_headers() -> Path:
    """The folder of CUDA's own cuda_fp16.h, from the package of the CUDA runtime."""
    nvidia = pytest.importorskip(
        "nvidia", reason="CUDA's headers are missing: pip install nvidia-cuda-runtime"
    )
    folders = [
        found.parent for path in nvidia.__path__ for found in Path(path).rglob("cuda_fp16.h")
    ]
    if not folders:
        pytest.skip("CUDA's headers are missing: pip install nvidia-cuda-runtime")
    return folders[0]


@pytest.mark.parametrize("name", ["kernels.cu", "number_kernels.cu"])
def test_nvrtc_accepts_the_kernels(name: str) -> None:
    pytest.importorskip(
        "cuda.bindings.nvrtc",
        reason="NVRTC is missing: pip install cuda-bindings nvidia-cuda-nvrtc",
    )
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    source = SIMT / "test_kernels" / name
    folders = [f"-I{folder}" for folder in (source.parent, _cuda_headers())]
    options = [b"--gpu-architecture=sm_87", b"--fmad=false", *(f.encode() for f in folders)]
    text = source.read_bytes()
    _, program = nvrtc.nvrtcCreateProgram(text, name.encode(), 0, [], [])
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytes(size + 1)  # written in place: b" " * 1 is an object that Python shares
    nvrtc.nvrtcGetProgramLog(program, log)
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
