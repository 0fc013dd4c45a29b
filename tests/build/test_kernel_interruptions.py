"""``fewstep build``: kernels are never half in a bundle.

Full disks and interruptions at every point: the bundle is then the one before or the one after.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.build.kernel_builds import NEWEST_DRIVER, contents, cubin_files, keep_compiled, usable

from fewstep.build import stale
from fewstep.build.kernels import build_kernels
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import OutputError
from fewstep.runtime.files import replacing
from fewstep.runtime.kernels import compile as compiling
from fewstep.runtime.kernels.compile import KernelCompiler
from fewstep.runtime.kernels.cubins import load_cubin
from fewstep.runtime.manifest import MANIFEST_NAME


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_compiled(monkeypatch)


def _disk_full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("reason", [KeyboardInterrupt, _disk_full])
@pytest.mark.parametrize("written", [0, 1, 2])
@pytest.mark.parametrize("had_kernels", [False, True])
def test_half_a_build_leaves_the_bundle_as_it_was(
    bundle_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: Callable[[], BaseException],
    written: int,
    had_kernels: bool,
) -> None:
    """Of the two cubins and the manifest, so many are written, and half of the next one."""
    if had_kernels:
        _build_stale(bundle_copy)
    before = contents(bundle_copy)
    with monkeypatch.context() as patch:
        _fail_after(patch, written, reason())
        with pytest.raises((KeyboardInterrupt, OutputError)):
            build_kernels(bundle_copy, ["7.5", "8.7"])
    after = contents(bundle_copy)
    assert after.items() >= before.items()
    assert [name for name in after if Path(name).name.startswith(".")] == []
    assert after[MANIFEST_NAME] == before[MANIFEST_NAME]
    usable(bundle_copy)
    assert build_kernels(bundle_copy, ["7.5", "8.7"]) is not None  # and the next one succeeds
    assert len(cubin_files(bundle_copy)) == 2
    usable(bundle_copy)


def test_interrupted_removal_leaves_the_new_kernels(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _build_stale(bundle_copy)
    unlink = Path.unlink

    def interrupted(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".cubin" and not self.name.startswith("."):
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", interrupted)
        build_kernels(bundle_copy, ["8.7"])
    assert load_cubin(Bundle.read(bundle_copy), "8.7", NEWEST_DRIVER)
    assert build_kernels(bundle_copy, ["8.7"]) is None
    usable(bundle_copy)


def _build_stale(path: Path) -> None:
    """Give the bundle kernels that count as made of other sources."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "sources_sha256", lambda: "0" * 64)
        patch.setattr(stale, "sources_sha256", lambda: "0" * 64)
        patch.setattr(KernelCompiler, "_compile", lambda self, name: (f"old {name}".encode(), ""))
        build_kernels(path, ["7.5", "8.7"])


def _fail_after(patch: pytest.MonkeyPatch, written: int, reason: BaseException) -> None:
    """Let ``written`` files be written and break off in the middle of the next one."""
    count = 0

    def counted(path: Path) -> Any:
        nonlocal count
        count += 1
        return replacing(path)

    def half(self: Path, data: Any, *_: Any, **__: Any) -> int:
        content = data.encode() if isinstance(data, str) else data
        with self.open("wb") as file:
            if count <= written:
                return file.write(content)
            file.write(content[: len(content) // 2])
            raise reason

    patch.setattr("fewstep.runtime.bundle.replacing", counted)
    patch.setattr(Path, "write_bytes", half)
    patch.setattr(Path, "write_text", half)
