"""Compiling the CUDA kernels: every architecture, nothing spilled, the same bytes anywhere.

Covered: cubins as ELF files for the right machine and architecture, with every kernel of the
sources in them; registers and shared memory within what a GPU has; equal bytes when compiled again,
in other processes, folders and header folders; no path of the machine in them; unknown
capabilities, absent packages, and sources that do not compile.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import textwrap
from hashlib import sha256
from pathlib import Path

import pytest

from fewstep.runtime.errors import EngineError, RequestError
from fewstep.runtime.kernels import compile as compiling
from fewstep.runtime.kernels.compile import (
    CAPABILITIES,
    CompiledKernels,
    KernelCompiler,
    sources_sha256,
)

_ROOT = Path(__file__).parents[3]
_KERNELS = _ROOT / "runtime" / "fewstep" / "runtime" / "kernels"
_CUDA_MACHINE = 190  # EM_CUDA
_ENTRY = re.compile(
    r'extern "C" __global__ void __launch_bounds__\((?P<threads>\d+)(?:, \d+)?\)\s+(?P<name>\w+)\('
)


@pytest.fixture(scope="module")
def compiler() -> KernelCompiler:
    return KernelCompiler()


@pytest.fixture(scope="module")
def compiled(compiler: KernelCompiler) -> CompiledKernels:
    """Every architecture that is compiled for by default, once."""
    return compiler.compile(compiler.wanted(()))


def _entries() -> dict[str, int]:
    """Every kernel of the sources with the block size it is bounded to."""
    text = "\n".join(path.read_text() for path in sorted(_KERNELS.glob("*.cu")))
    return {match["name"]: int(match["threads"]) for match in _ENTRY.finditer(text)}


def _architecture(cubin: bytes) -> int:
    """Number of the architecture in the ELF header; 87 is sm_87."""
    flags = struct.unpack_from("<I", cubin, 48)[0]
    return int((flags >> 8 if cubin[8] >= 8 else flags) & 0xFF)


def _code(cubin: bytes) -> dict[str, bytes]:
    """Instructions of every kernel: the sections called ``.text.``."""
    offset, size, count, names_at = struct.unpack_from("<Q10xHHH", cubin, 40)
    headers = [struct.unpack_from("<I20xQQ", cubin, offset + i * size) for i in range(count)]
    start = headers[names_at][1]
    named = {cubin[start + name :].split(b"\0", 1)[0].decode(): at for name, *at in headers}
    return {
        name.removeprefix(".text."): cubin[first : first + length]
        for name, (first, length) in named.items()
        if name.startswith(".text.")
    }


# --- what comes out


def test_the_sources_hold_the_kernels_that_are_launched() -> None:
    assert set(_entries()) == {
        *(
            "add_half",
            "advance",
            "choose_tokens",
            "copy_rows",
            "diffusion_step",
            "gather_rows",
            *("gather_tokens", "smooth_actions"),
        ),
        *("initial_tokens", "policy_parameters", "random_order", "remask", "scatter_rows"),
        *("scatter_tokens", "select_rows", "similarity", "start_diffusion", "subtract"),
        *("sample_top_k_top_p_float", "sample_top_k_top_p_half", "sampling_parameters"),
        *("sample_tokens_float", "sample_tokens_half", "to_pixels_float", "to_pixels_half"),
    }


def test_every_default_capability_is_compiled_for(compiled: CompiledKernels) -> None:
    known_by_12 = {"7.5", "8.0", "8.6", "8.7", "8.9", "9.0"}
    assert known_by_12 <= set(compiled.cubins)
    if compiled.compiler.startswith("NVRTC 13."):
        assert set(compiled.cubins) == set(CAPABILITIES)
        assert set(CAPABILITIES) == known_by_12 | {"10.0", "10.3", "11.0", "12.0"}


def test_cubins_are_elf_files_for_the_gpu_and_its_architecture(compiled: CompiledKernels) -> None:
    for capability, cubin in compiled.cubins.items():
        assert cubin[:6] == b"\x7fELF\x02\x01"  # 64 bits, little-endian
        assert struct.unpack_from("<H", cubin, 18)[0] == _CUDA_MACHINE
        assert _architecture(cubin) == int(capability.replace(".", ""))


def test_every_cubin_holds_every_kernel(compiled: CompiledKernels) -> None:
    for capability, cubin in compiled.cubins.items():
        assert _code(cubin).keys() == _entries().keys(), capability


def test_every_kernel_is_reported_once_per_capability(compiled: CompiledKernels) -> None:
    reported = [(each.capability, each.kernel) for each in compiled.resources]
    expected = [(capability, name) for capability in compiled.cubins for name in _entries()]
    assert sorted(reported) == sorted(expected)


def test_nothing_spills_and_nothing_is_on_the_stack(compiled: CompiledKernels) -> None:
    spilled = [each for each in compiled.resources if each.spill_bytes or each.stack_bytes]
    assert spilled == []


def test_registers_leave_room_for_a_full_block(compiled: CompiledKernels) -> None:
    """65,536 registers per multiprocessor, given out to warps in units of 8 a thread."""
    threads = _entries()
    for each in compiled.resources:
        assert 0 < each.registers <= 255
        assert -(-each.registers // 8) * 8 * threads[each.kernel] <= 65_536


def test_shared_memory_is_what_the_sources_declare(compiled: CompiledKernels) -> None:
    """remask: 4096 keys, 256 bins, 4 numbers; sample_tokens: 3 floats for each of 512 chunks;
    sample_top_k_top_p: 8192 logits, 8 maxima, 256 bins, 8 sums, a place; random_order: 4096 keys;
    select_rows: 8192 similarities."""
    expected = dict.fromkeys(_entries(), 0)
    expected |= {"remask": 4 * (4096 + 256 + 5)}
    expected |= {"random_order": 8 * 4096, "select_rows": 4 * 8192}
    expected |= dict.fromkeys(("sample_tokens_float", "sample_tokens_half"), 3 * 4 * 512)
    filtered = ("sample_top_k_top_p_float", "sample_top_k_top_p_half")
    expected |= dict.fromkeys(filtered, 4 * (8192 + 8) + 8 * (256 + 8) + 16)
    assert all(each.shared_bytes == expected[each.kernel] for each in compiled.resources)
    assert max(expected.values()) <= 48 * 1024  # what a block gets without asking


def test_products_and_sums_are_rounded_one_by_one(
    compiler: KernelCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the CPU: the instructions are those of intrinsics that never become one FMA."""
    code = []
    for formula in ("x[1] * x[2] + x[3]", "__fadd_rn(__fmul_rn(x[1], x[2]), x[3])"):
        source = f'extern "C" __global__ void sum(float* x) {{ x[0] = {formula}; }}'.encode()
        monkeypatch.setattr(
            compiling, "kernel_sources", lambda source=source: {"kernels.cu": source}
        )
        code.append(_code(compiler.compile(["8.7"]).cubins["8.7"])["sum"])
    assert code[0] == code[1]


def test_what_was_compiled_is_json(compiled: CompiledKernels) -> None:
    data = json.loads(json.dumps(compiled.as_dict()))
    assert data["cubin_bytes"] == {name: len(cubin) for name, cubin in compiled.cubins.items()}
    assert data["sources_sha256"] == sources_sha256()
    assert re.fullmatch(r"NVRTC \d+\.\d+", data["compiler"])
    assert set(data["resources"][0]) == {
        *("kernel", "capability", "registers", "shared_bytes", "spill_bytes", "stack_bytes")
    }


# --- the same bytes


def _compile_elsewhere(folder: Path) -> str:
    """SHA-256 of the cubin for 8.7, made in another process and working folder."""
    code = """
        import hashlib
        from fewstep.runtime.kernels.compile import KernelCompiler
        print(hashlib.sha256(KernelCompiler().compile(["8.7"]).cubins["8.7"]).hexdigest())
    """
    return _run(code, folder)


def _run(code: str, folder: Path) -> str:
    script = f"import sys\nsys.path.insert(0, {str(_ROOT / 'runtime')!r})\n{textwrap.dedent(code)}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_another_process_makes_the_same_bytes(compiled: CompiledKernels, tmp_path: Path) -> None:
    assert _compile_elsewhere(tmp_path) == sha256(compiled.cubins["8.7"]).hexdigest()


def test_compiling_again_with_headers_elsewhere_makes_the_same_bytes(
    compiler: KernelCompiler,
    compiled: CompiledKernels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert compiler._headers is not None
    elsewhere = shutil.copytree(compiler._headers, tmp_path / "else where ü")
    monkeypatch.setattr(compiler, "_headers", str(elsewhere))
    monkeypatch.chdir(tmp_path)
    assert compiler.compile(["8.7"]).cubins == {"8.7": compiled.cubins["8.7"]}


def test_no_path_of_this_machine_is_in_a_cubin(
    compiler: KernelCompiler, compiled: CompiledKernels
) -> None:
    assert compiler._headers is not None
    paths = {str(place) for place in (_ROOT, Path.home(), Path.cwd(), sys.prefix)} - {"/"}
    paths |= {compiler._headers, "/usr/", "/tmp/", "site-packages", "nvidia/"}
    for cubin in compiled.cubins.values():
        assert [path for path in sorted(paths) if path.encode() in cubin] == []


# --- what is refused


def test_defaults_are_those_that_the_compiler_knows(compiler: KernelCompiler) -> None:
    wanted = compiler.wanted(())
    assert set(wanted) <= set(compiler.known())
    assert set(wanted) == {"7.2", *CAPABILITIES} & set(compiler.known())


def test_defaults_of_an_older_compiler_take_xavier_and_leave_thor(
    compiler: KernelCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "known", lambda: ["5.0", "7.2", "7.5", "8.7", "10.1"])
    assert compiler.wanted(()) == ("7.2", "7.5", "8.7")


def test_defaults_of_the_last_cuda_12_compiler_have_the_data_centers_blackwell_and_not_10_1(
    compiler: KernelCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = (70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121)  # of NVRTC 12.9
    monkeypatch.setattr(compiler, "known", lambda: [f"{n // 10}.{n % 10}" for n in numbers])
    assert compiler.wanted(()) == ("7.2", *(each for each in CAPABILITIES if each != "11.0"))


def test_capabilities_named_twice_are_compiled_once(compiler: KernelCompiler) -> None:
    assert compiler.wanted(["8.7", "7.5", "8.7"]) == ("8.7", "7.5")


@pytest.mark.parametrize("capability", ["9.9", "87", "sm_87", "8.70", "", "8", "8.7a", "²"])
def test_unknown_capability_names_those_that_are_known(
    compiler: KernelCompiler, capability: str
) -> None:
    with pytest.raises(RequestError) as caught:
        compiler.wanted(["8.7", capability])
    message = str(caught.value)
    assert f"'{capability}'" in message
    assert compiler.version in message
    assert all(known in message for known in compiler.known())


@pytest.mark.parametrize(
    "source",
    [
        b'extern "C" __global__ void broken() { undeclared = 1; }\n',
        b'#include "absent_header.cuh"\n',
        b"#error undeclared and absent_header\n",
    ],
)
def test_sources_that_do_not_compile_show_the_compilers_log(
    compiler: KernelCompiler, monkeypatch: pytest.MonkeyPatch, source: bytes
) -> None:
    monkeypatch.setattr(compiling, "kernel_sources", lambda: {"kernels.cu": source})
    with pytest.raises(EngineError) as caught:
        compiler.compile(["8.7"])
    message = str(caught.value)
    assert message.startswith(f"{compiler.version} refuses the kernels for 8.7: ")
    assert "kernels.cu(1)" in message
    assert "undeclared" in message or "absent_header" in message


def test_compiler_works_after_a_failure(
    compiler: KernelCompiler, compiled: CompiledKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(EngineError):
        patch.setattr(compiling, "kernel_sources", lambda: {"kernels.cu": b"?"})
        compiler.compile(["8.7"])
    assert compiler.compile(["8.7"]).cubins["8.7"] == compiled.cubins["8.7"]


def test_spills_and_stack_are_seen(
    compiler: KernelCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel with an array that is indexed at run time, and one with too few registers."""
    source = b"""
        extern "C" __global__ void stacked(int* out, int at) {
          int numbers[64] = {};
          for (int i = 0; i < at; ++i) numbers[out[i] % 64] += i;
          for (int i = 0; i < at; ++i) out[i] = numbers[i % 64];
        }
        extern "C" __global__ void __launch_bounds__(1024, 2) crowded(float* out) {
          float v[96];
        #pragma unroll
          for (int i = 0; i < 96; ++i) v[i] = out[i * 1024 + threadIdx.x];
          __syncthreads();
        #pragma unroll
          for (int i = 0; i < 96; ++i) out[(95 - i) * 1024 + threadIdx.x] = v[i] * v[(i + 7) % 96];
        }
    """
    monkeypatch.setattr(compiling, "kernel_sources", lambda: {"kernels.cu": source})
    crowded, stacked = compiler.compile(["8.7"]).resources
    assert (stacked.kernel, crowded.kernel) == ("stacked", "crowded")
    assert stacked.stack_bytes >= 256
    assert crowded.spill_bytes > 0


def test_empty_log_leaves_the_interpreter_alone(tmp_path: Path) -> None:
    """Its one byte must not go into an object that others share."""
    code = """
        from fewstep.runtime.kernels import compile as compiling
        compiling._OPTIONS = ()
        compiling.kernel_sources = lambda: {"kernels.cu": b"__global__ void nothing() {}"}
        compiling.KernelCompiler().compile(["8.7"])
        print(bytes([32]) == bytearray([32]))
    """
    assert _run(code, tmp_path) == "True"


# --- packages that are not there


_ABSENT = {
    "no cuda packages": 'sys.modules["cuda"] = None',
    "no bindings": 'sys.modules["cuda.bindings"] = None',
    "no pathfinder": 'sys.modules["cuda.pathfinder"] = None',
    "no NVRTC": """
import cuda.pathfinder as finder
def absent(name, *rest, **more):
    raise finder.DynamicLibNotFoundError(name)
finder.load_nvidia_dynamic_lib = absent
""",
    "no headers": """
import cuda.pathfinder
cuda.pathfinder.find_nvidia_header_directory = lambda name: None
""",
}


@pytest.mark.parametrize(
    ("absent", "package"),
    [
        ("no cuda packages", "cuda-bindings"),
        ("no bindings", "cuda-bindings"),
        ("no pathfinder", "cuda-"),
        ("no NVRTC", "nvidia-cuda-nvrtc"),
        ("no headers", "nvidia-cuda-runtime"),
    ],
)
def test_absent_package_names_the_extra(absent: str, package: str, tmp_path: Path) -> None:
    code = _ABSENT[absent] + textwrap.dedent(
        """
        from fewstep.runtime import MissingDependencyError
        from fewstep.runtime.kernels.compile import KernelCompiler
        try:
            KernelCompiler()
        except MissingDependencyError as error:
            print(error)
        """
    )
    message = _run(code, tmp_path)
    assert message.startswith(package)
    assert message.endswith("install it with: pip install 'fewstep[kernels]'")
