"""What importing may and may not do: no torch in the runtime, nothing heavy at its front door.

Each check runs in its own interpreter, because this one has imported everything already.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_RUNTIME = _ROOT / "runtime"
_FOLDERS = ("export", "runtime", "calibration")
_BLOCK = """
    import importlib, importlib.abc, sys

    class Block(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {blocked}:
                raise ImportError(name + " is blocked in this test", name=name)

    sys.meta_path.insert(0, Block())
"""
_EXPORT_ONLY = ("torch", "onnx", "onnxscript", "safetensors")
_OPTIONAL = (*_EXPORT_ONLY, "onnxruntime", "cuda", "pycuda")
_KERNELS = "fewstep.runtime.kernels"


def _runtime_modules() -> list[str]:
    found = []
    for path in sorted((_RUNTIME / "fewstep").rglob("*.py")):
        if path.name == "__main__.py":  # importing it runs the command line
            continue
        parts = path.relative_to(_RUNTIME).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def _run(code: str, folders: tuple[str, ...] = _FOLDERS) -> str:
    """Standard output of ``code`` in a fresh interpreter that sees the sources."""
    paths = [str(_ROOT / folder) for folder in folders]
    script = f"import sys\nsys.path[:0] = {paths!r}\n{textwrap.dedent(code)}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_of_modules_is_not_empty() -> None:
    modules = _runtime_modules()
    assert {"fewstep.runtime", "fewstep.runtime.kernels.philox"} <= set(modules)
    assert "fewstep.runtime.engines.onnxruntime" in modules


def test_every_runtime_module_imports_without_torch_and_engines() -> None:
    """The command line included; numba alone is needed, by the kernels for the CPU."""
    code = textwrap.dedent(_BLOCK.format(blocked=set(_OPTIONAL))) + textwrap.dedent(
        f"""
        for name in {_runtime_modules()!r}:
            importlib.import_module(name)
        print(sorted(set({_OPTIONAL!r}) & set(sys.modules)))
        """
    )
    assert _run(code) == "[]\n"


def test_absent_numba_names_the_extra() -> None:
    code = textwrap.dedent(_BLOCK.format(blocked={"numba"})) + textwrap.dedent(
        """
        from fewstep.runtime import MissingDependencyError
        try:
            from fewstep.runtime.devices.cpu import CpuDevice
        except MissingDependencyError as error:
            print(error)
        """
    )
    assert _run(code) == "numba is not installed; install it with: pip install 'fewstep[cpu]'\n"


def test_only_the_kernels_for_the_cpu_and_their_device_need_numba() -> None:
    names = (
        *("add_half", "cache", "choices", "choose_tokens", "compile", "copy_rows", "cubins"),
        *("launch", "launch_base", "launch_diffusion", "launch_rows", "launch_tokens"),
        *("smooth_actions", "subtract"),
    )
    without = {f"{_KERNELS}.{name}" for name in names}
    kernels = {name for name in _runtime_modules() if name.startswith(f"{_KERNELS}.")}
    code = textwrap.dedent(_BLOCK.format(blocked={*_OPTIONAL, "numba"})) + textwrap.dedent(
        f"""
        from fewstep.runtime import MissingDependencyError
        for name in {_runtime_modules()!r}:
            try:
                importlib.import_module(name)
            except MissingDependencyError as error:
                assert "fewstep[cpu]" in str(error), error
                print(name)
        """
    )
    assert without < kernels
    assert set(_run(code).split()) == {*(kernels - without), "fewstep.runtime.devices.cpu"}


def test_gpu_without_its_packages_is_not_blamed_on_those_of_the_cpu(tiny_bundle: Path) -> None:
    code = textwrap.dedent(_BLOCK.format(blocked={*_EXPORT_ONLY, "numba"})) + textwrap.dedent(
        f"""
        import ctypes
        from fewstep import Generator, MissingDependencyError
        sys.modules["pycuda"] = None
        ctypes.CDLL = lambda name: name  # there is a driver
        try:
            Generator.open({str(tiny_bundle)!r}, device="cuda")
        except MissingDependencyError as error:
            print(error)
        """
    )
    assert _run(code) == "pycuda is not installed; install it with: pip install 'fewstep[cuda]'\n"


def test_building_needs_no_torch_and_no_builder_until_it_builds() -> None:
    modules = [
        f"fewstep.build.{path.stem}" for path in (_ROOT / "export/fewstep/build").glob("[!_]*.py")
    ]
    assert "fewstep.build.engines" in modules
    blocked = {"torch", "onnxscript", "safetensors", "tensorrt", "tensorrt_rtx", "polygraphy"}
    code = textwrap.dedent(_BLOCK.format(blocked=blocked)) + textwrap.dedent(
        f"""
        for name in {sorted(modules)}:
            importlib.import_module(name)
            print(name)
        """
    )
    assert _run(code).split() == sorted(modules)


@pytest.mark.parametrize(
    "name", ["kernels", "pipeline", "profiles", "progress_monitor", "stale", "target"]
)
def test_what_builds_no_graph_needs_no_onnx(name: str) -> None:
    code = textwrap.dedent(_BLOCK.format(blocked={*_OPTIONAL, "numba"})) + textwrap.dedent(
        f"""
        importlib.import_module("fewstep.build.{name}")
        print("imported")
        """
    )
    assert _run(code) == "imported\n"


def test_building_kernels_needs_the_compilers_packages_only(bundle_copy: Path) -> None:
    blocked = {*_OPTIONAL, "numba"} - {"cuda"}
    code = textwrap.dedent(_BLOCK.format(blocked=blocked)) + textwrap.dedent(
        f"""
        from fewstep.build.kernels import build_kernels
        print(*build_kernels({str(bundle_copy)!r}, ["8.7"]).cubins)
        """
    )
    assert _run(code) == "8.7\n"


@pytest.mark.parametrize("module", ["fewstep.runtime.doctor", "fewstep.cli"])
def test_doctor_speaks_where_nothing_optional_is_installed(module: str) -> None:
    code = textwrap.dedent(_BLOCK.format(blocked={*_OPTIONAL, "numba"})) + textwrap.dedent(
        f"""
        importlib.import_module({module!r})
        print("imported")
        """
    )
    assert _run(code) == "imported\n"


def test_the_block_above_blocks() -> None:
    code = textwrap.dedent(_BLOCK.format(blocked={"torch"})) + textwrap.dedent(
        """
        try:
            import torch
        except ImportError as error:
            print(error)
        """
    )
    assert _run(code) == "torch is blocked in this test\n"


def test_generating_needs_no_export_package(tiny_bundle: Path) -> None:
    code = textwrap.dedent(_BLOCK.format(blocked=set(_EXPORT_ONLY))) + textwrap.dedent(
        f"""
        from fewstep.runtime import Generator
        with Generator.open({str(tiny_bundle)!r}, threads=1) as generator:
            print(generator.generate(class_ids=[0], steps=2, schedule="policy").images.shape)
        """
    )
    assert _run(code) == "(1, 8, 8, 3)\n"


# --- the front door


def test_front_door_imports_nothing_heavy() -> None:
    heavy = ("numpy", "pydantic", "onnxruntime", "PIL", "torch", "onnx", "typer", "rich", "cuda")
    code = f"""
        before = set(sys.modules)
        import fewstep.runtime
        dir(fewstep), dir(fewstep.runtime), fewstep.__version__, fewstep.RequestError
        print(sorted(set({heavy!r}) & (set(sys.modules) - before)))
    """
    assert _run(code) == "[]\n"


def test_front_door_leads_to_the_real_classes() -> None:
    code = """
        import fewstep
        from fewstep import RequestError, open
        from fewstep.runtime import Generator
        print(Generator is fewstep.Generator, open == Generator.open, Generator.__module__)
        print(RequestError.__module__, {"open", "Generator", "RequestError"} <= {*dir(fewstep)})
    """
    assert _run(code) == "True True fewstep.runtime.generator\nfewstep.runtime.errors True\n"


def test_a_name_that_is_not_there_is_the_usual_error() -> None:
    code = """
        import fewstep
        try:
            fewstep.Genertor
        except AttributeError as error:
            print(error)
    """
    assert _run(code) == "module 'fewstep' has no attribute 'Genertor'\n"


def test_version_is_known_where_nothing_is_installed(tmp_path: Path) -> None:
    """As on a device that has the sources alone; ``-S`` leaves installed packages out."""
    code = "import fewstep; print(fewstep.__version__)"
    command, variables = [sys.executable, "-S", "-c", code], {"PYTHONPATH": str(_RUNTIME)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=variables
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


def test_one_of_the_three_folders_is_the_package() -> None:
    """A second ``fewstep/__init__.py`` would hide the rest of its own folder."""
    found = {folder for folder in _FOLDERS if (_ROOT / folder / "fewstep/__init__.py").exists()}
    assert found == {"runtime"}
    assert all((_ROOT / folder / "fewstep").is_dir() for folder in _FOLDERS)


@pytest.mark.parametrize("folders", list(itertools.permutations(_FOLDERS)), ids="-".join)
def test_the_package_spans_the_folders_in_any_order(folders: tuple[str, ...]) -> None:
    code = """
        import fewstep, fewstep.build, fewstep.calibration, fewstep.cli, fewstep.export
        print(*sorted(path.split("/")[-2] for path in fewstep.__path__))
    """
    assert _run(code, folders) == "calibration export runtime\n"
