"""``fewstep build``: kernels into a bundle, again only when needed, and never half.

Kernels are compiled for real, once per architecture and sources. Covered: what is compiled and what
is up to date; forcing, subsets and damage; folders that are no bundle or cannot be written.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.build.kernel_builds import (
    NEWEST_DRIVER,
    Calls,
    contents,
    cubin_files,
    keep_compiled,
    usable,
)

from fewstep.build.kernels import build_kernels, dropped_kernels
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, OutputError, RequestError
from fewstep.runtime.kernels import compile as compiling
from fewstep.runtime.kernels.compile import KernelCompiler, kernel_sources
from fewstep.runtime.kernels.cubins import load_cubin

Stamps = dict[str, tuple[int, int, str]]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the compiler is asked for; nothing is compiled twice."""
    return keep_compiled(monkeypatch)


@pytest.fixture
def other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of another version of fewstep."""
    sources = kernel_sources()
    sources["kernels.cu"] += b'extern "C" __global__ void more(int* out) { *out = 1; }\n'
    monkeypatch.setattr(compiling, "kernel_sources", lambda: sources)


def _stamps(path: Path) -> Stamps:
    """Every file and folder with its inode, time and contents."""
    return {
        each.relative_to(path).as_posix(): (
            each.stat().st_ino,
            each.stat().st_mtime_ns,
            sha256(each.read_bytes()).hexdigest() if each.is_file() else "",
        )
        for each in (path, *path.rglob("*"))
    }


# --- building


def test_built_kernels_are_those_the_compiler_makes(bundle_copy: Path) -> None:
    compiled = build_kernels(bundle_copy, ["7.5", "8.7"])
    assert compiled is not None
    bundle = Bundle.read(bundle_copy)
    for capability in ("7.5", "8.7"):
        cubin = load_cubin(bundle, capability, NEWEST_DRIVER)
        assert cubin == compiled.cubins[capability]
        assert cubin == KernelCompiler().compile([capability]).cubins[capability]
    assert {each.capability for each in compiled.resources} == {"7.5", "8.7"}
    usable(bundle_copy)


def test_without_capabilities_all_that_are_supported_are_built(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "CAPABILITIES", ("7.5", "8.7"))
    monkeypatch.setattr(KernelCompiler, "known", lambda self: ["5.0", "7.5", "8.0", "8.7"])
    compiled = build_kernels(bundle_copy)
    assert compiled is not None
    assert set(compiled.cubins) == {"7.5", "8.7"}
    assert build_kernels(str(bundle_copy)) is None


def test_two_bundles_get_the_same_files(tiny_bundle: Path, tmp_path: Path) -> None:
    one, other = (Path(shutil.copytree(tiny_bundle, tmp_path / name)) for name in ("a", "b c"))
    for path in (one, other):
        build_kernels(path, ["8.7"])
    assert contents(one) == contents(other)


# --- up to date or not


@pytest.mark.parametrize("wanted", [["7.5", "8.7"], ["8.7"], ["8.7", "7.5"]])
def test_up_to_date_kernels_are_not_touched(
    bundle_copy: Path, calls: Calls, wanted: list[str]
) -> None:
    build_kernels(bundle_copy, ["7.5", "8.7"])
    calls.take()
    before = _stamps(bundle_copy)
    assert build_kernels(bundle_copy, wanted) is None
    assert calls.take() == []
    assert _stamps(bundle_copy) == before


def test_force_compiles_again_and_ends_with_the_samecontents(
    bundle_copy: Path, calls: Calls
) -> None:
    build_kernels(bundle_copy, ["8.7"])
    before = contents(bundle_copy)
    calls.take()
    assert build_kernels(bundle_copy, ["8.7"], force=True) is not None
    assert calls.take() == ["8.7"]
    assert contents(bundle_copy) == before


@pytest.mark.parametrize("force", [False, True])
def test_kernels_for_other_gpus_stay(bundle_copy: Path, calls: Calls, force: bool) -> None:
    """All are of one compiler and the same sources, so those are compiled again too."""
    build_kernels(bundle_copy, ["7.5", "8.7"])
    calls.take()
    compiled = build_kernels(bundle_copy, ["8.7" if force else "8.6"], force=force)
    assert compiled is not None
    expected = ["8.7", "7.5"] if force else ["8.6", "7.5", "8.7"]
    assert (calls.take(), list(compiled.cubins)) == (expected, expected)
    kernels = Bundle.read(bundle_copy).manifest.kernels
    assert kernels is not None
    assert list(kernels.cubins) == expected
    assert dropped_kernels(kernels, compiled) == ""
    usable(bundle_copy)


def test_kernels_that_this_compiler_does_not_know_are_dropped_and_named(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_kernels(bundle_copy, ["7.5", "8.7"])
    before = Bundle.read(bundle_copy).manifest.kernels
    monkeypatch.setattr(KernelCompiler, "known", lambda self: ["8.6", "8.7"])
    compiled = build_kernels(bundle_copy, ["8.6"])
    assert compiled is not None
    assert list(compiled.cubins) == ["8.6", "8.7"]
    said = dropped_kernels(before, compiled)
    assert said.startswith("kernels for 7.5 are no longer in the bundle: NVRTC")
    assert (dropped_kernels(None, compiled), dropped_kernels(before, None)) == ("", "")


def test_one_that_is_not_there_is_built(bundle_copy: Path, calls: Calls) -> None:
    build_kernels(bundle_copy, ["7.5"])
    calls.take()
    assert build_kernels(bundle_copy, ["7.5", "8.7"]) is not None
    assert "8.7" in calls.take()
    kernels = Bundle.read(bundle_copy).manifest.kernels
    assert kernels is not None
    assert set(kernels.cubins) == {"7.5", "8.7"}


@pytest.mark.usefixtures("other_sources")
def test_kernels_of_other_sources_are_replaced(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_kernels(bundle_copy, ["8.7"])
    stale = cubin_files(bundle_copy)
    monkeypatch.setattr(compiling, "kernel_sources", kernel_sources)
    with pytest.raises(BundleError, match="another version of fewstep"):
        load_cubin(Bundle.read(bundle_copy), "8.7", NEWEST_DRIVER)
    assert build_kernels(bundle_copy, ["8.7"]) is not None
    assert load_cubin(Bundle.read(bundle_copy), "8.7", NEWEST_DRIVER)
    fresh = cubin_files(bundle_copy)
    assert len(fresh) == 1
    assert fresh != stale


def test_kernels_of_another_compiler_are_replaced(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_kernels(bundle_copy, ["8.7"])
    initialise = KernelCompiler.__init__

    def newer(self: KernelCompiler) -> None:
        initialise(self)
        self.version = "NVRTC 98.7"

    monkeypatch.setattr(KernelCompiler, "__init__", newer)
    assert build_kernels(bundle_copy, ["8.7"]) is not None
    kernels = Bundle.read(bundle_copy).manifest.kernels
    assert kernels is not None
    assert kernels.compiler == "NVRTC 98.7"


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]),
    ],
)
def test_damaged_cubin_is_built_again(bundle_copy: Path, damage: Callable[[Path], object]) -> None:
    build_kernels(bundle_copy, ["7.5", "8.7"])
    whole = contents(bundle_copy)
    damage(cubin_files(bundle_copy)[1])
    assert build_kernels(bundle_copy, ["7.5"]) is None  # this one is as it was
    assert build_kernels(bundle_copy, ["7.5", "8.7"]) is not None
    assert contents(bundle_copy) == whole


@pytest.mark.usefixtures("other_sources")
def test_folder_in_the_place_of_a_replaced_cubin_is_no_defect(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_kernels(bundle_copy, ["8.7"])
    stale = cubin_files(bundle_copy)[0]
    stale.unlink()
    stale.mkdir()
    monkeypatch.setattr(compiling, "kernel_sources", kernel_sources)
    build_kernels(bundle_copy, ["8.7"])
    assert load_cubin(Bundle.read(bundle_copy), "8.7", NEWEST_DRIVER)


# --- what cannot be built


@pytest.mark.parametrize("kind", ["absent", "empty folder", "file"])
def test_no_bundle_is_refused_before_anything_is_compiled(
    tmp_path: Path, kind: str, calls: Calls
) -> None:
    path = tmp_path / "bundle"
    if kind == "file":
        path.write_text("{}")
    elif kind == "empty folder":
        path.mkdir()
    with pytest.raises(BundleError, match="no bundle at"):
        build_kernels(path, ["8.7"])
    assert calls.take() == []
    assert path.exists() == (kind != "absent")


def test_unknown_capability_is_refused_before_anything_is_compiled(
    bundle_copy: Path, calls: Calls
) -> None:
    before = _stamps(bundle_copy)
    with pytest.raises(RequestError, match="unknown compute capability"):
        build_kernels(bundle_copy, ["8.7", "3.5"])
    assert calls.take() == []
    assert _stamps(bundle_copy) == before


def test_file_in_the_place_of_the_folder_is_an_output_error(bundle_copy: Path) -> None:
    (bundle_copy / "kernels").write_text("in the way")
    before = contents(bundle_copy)
    with pytest.raises(OutputError, match=r"cannot write .*kernels.*sm_87"):
        build_kernels(bundle_copy, ["8.7"])
    assert contents(bundle_copy) == before
    usable(bundle_copy)


def test_link_that_leads_out_of_the_bundle_is_not_followed(bundle_copy: Path) -> None:
    outside = bundle_copy.parent / "outside"
    outside.mkdir()
    (bundle_copy / "kernels").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        build_kernels(bundle_copy, ["8.7"])
    assert list(outside.iterdir()) == []
    usable(bundle_copy)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_read_only_folder_is_left_as_it_was(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Root may write anywhere, so the system's refusal is played."""
    build_kernels(bundle_copy, ["7.5"])
    before = contents(bundle_copy)

    def refuse(*_: Any) -> None:
        raise OSError(code, "refused")

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="refused; choose"):
        patch.setattr("fewstep.runtime.unfinished.new_file", refuse)
        build_kernels(bundle_copy, ["7.5", "8.7"])
    assert contents(bundle_copy) == before
    usable(bundle_copy)
