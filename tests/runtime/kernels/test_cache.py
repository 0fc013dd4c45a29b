"""Compiled CPU kernels on disk: found again, and no obstacle when damaged, unreadable or unkept."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from fewstep.runtime.errors import FewstepWarning
from fewstep.runtime.kernels import cache
from fewstep.runtime.kernels.compiled import kernel


def _doubled(values: Any, out: Any) -> None:
    for index in range(len(values)):
        out[index] = values[index] * np.float32(2)


def _fresh() -> Any:
    """The kernel as a new process has it."""
    return kernel(_doubled)


def _works(compiled: Any) -> bool:
    values = np.arange(5, dtype=np.float32)
    out = np.empty_like(values)
    compiled(values, out)
    return bool((out == [0, 2, 4, 6, 8]).all())


def _loaded(compiled: Any) -> bool:
    return bool(sum(compiled.stats.cache_hits.values()) == 1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept, not there yet."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "nc"))
    cache._say.cache_clear()
    return tmp_path / "nc" / "fewstep" / "cpu-kernels"


def _said(use: Callable[[], bool]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert use()
    return [str(each.message) for each in found if each.category is FewstepWarning]


def test_a_kernel_is_kept_and_found_again(folder: Path) -> None:
    assert _said(lambda: _works(_fresh())) == []
    (file,) = folder.iterdir()
    assert file.name.startswith("test_cache._doubled-")
    again = _fresh()
    assert _said(lambda: _works(again)) == []
    assert _loaded(again)
    assert [each.name for each in folder.iterdir()] == [file.name]


def test_a_kept_kernel_runs_without_what_compiles() -> None:
    """numba's registries take longer to fill than anything else on the way to the first image."""
    code = """
        from numba.core.cpu import CPUContext
        import numpy as np
        refresh = CPUContext.refresh
        CPUContext.refresh = lambda context: print("compiling") or refresh(context)
        from fewstep.runtime.kernels.sample_tokens import sample_row
        print(sample_row(np.arange(5, dtype=np.float32), np.float32(0), np.float32(0))[0])
    """
    said = []
    for _ in range(2):
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said.append(done.stdout.split())
    assert set(said[0]) == {"compiling", "4"}
    assert said[1] == ["4"]


def test_other_sources_are_other_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _works(_fresh())
    monkeypatch.setattr(cache, "_sources", lambda: "edited")
    again = _fresh()
    assert _works(again)
    assert not _loaded(again)
    assert len(list(folder.iterdir())) == 2


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"garbage",
        lambda content: b"\0" * len(content),
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        _flipped,
        lambda content: hashlib.sha256(b"").digest(),
        lambda content: hashlib.sha256(pickle.dumps(None)).digest() + pickle.dumps(None),
    ],
)
def test_what_is_damaged_is_removed_and_compiled_again(
    damage: Callable[[bytes], bytes], folder: Path
) -> None:
    assert _works(_fresh())
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    (note,) = _said(lambda: _works(_fresh()) and _works(_fresh()))
    assert "damaged; they are compiled again" in note
    again = _fresh()
    assert _said(lambda: _works(again)) == []
    assert _loaded(again)


def test_a_folder_in_the_place_of_a_kernel(folder: Path) -> None:
    assert _works(_fresh())
    (file,) = folder.iterdir()
    file.unlink()
    file.mkdir()
    (note, *_) = _said(lambda: _works(_fresh()))
    assert "NUMBA_CACHE_DIR" in note


@pytest.mark.parametrize("place", ["nc", "nc/fewstep", "nc/fewstep/cpu-kernels"])
def test_a_file_in_the_place_of_the_folder_is_said_once(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("")
    found = _said(lambda: _works(_fresh()) and _works(_fresh()))
    assert any("set NUMBA_CACHE_DIR to a folder that can be written" in note for note in found)
    assert len(found) == len(set(found)) <= 2


def test_a_full_disk_is_said_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    (note,) = _said(lambda: _works(_fresh()))
    assert "not kept" in note and "No space left on device" in note and "NUMBA_CACHE_DIR" in note
    assert list(folder.iterdir()) == []


def test_what_cannot_be_read_is_compiled_and_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _works(_fresh())

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(cache, "_sources", lambda: "read before")
    monkeypatch.setattr(Path, "read_bytes", refused)
    (note,) = _said(lambda: _works(_fresh()) and _works(_fresh()))
    assert "cannot be read" in note and "Permission denied" in note and "NUMBA_CACHE_DIR" in note


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_folder_without_permission(mode: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    try:
        assert any("NUMBA_CACHE_DIR" in note for note in _said(lambda: _works(_fresh())))
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NUMBA_CACHE_DIR": "/given", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/given"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg"),
        ({"HOME": "/home/me"}, "/home/me/.cache"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache"),
        ({"XDG_CACHE_HOME": "~/xdg", "HOME": "/home/me"}, "/home/me/xdg"),
        ({"NUMBA_CACHE_DIR": "~/nc", "HOME": "/home/me"}, "/home/me/nc"),
        ({"NUMBA_CACHE_DIR": "here", "HOME": "/home/me"}, "CWD/here"),
        ({"HOME": "~"}, None),
        ({"HOME": "relative"}, None),
        ({"NUMBA_CACHE_DIR": "~nobody-of-that-name/nc"}, None),
        ({"NUMBA_CACHE_DIR": "~/nc", "HOME": "~"}, None),
    ],
)
def test_the_folder_is_never_one_named_like_home(
    variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wanted = None
    if expected is not None:
        wanted = Path(expected.replace("CWD", str(Path.cwd()))) / "fewstep" / "cpu-kernels"
    assert cache.cache_folder() == wanted


def test_without_a_home_kernels_are_not_kept_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")
    (note,) = _said(lambda: _works(_fresh()))
    assert "there is no folder for them; set NUMBA_CACHE_DIR" in note
    assert list(tmp_path.iterdir()) == []


def test_several_threads_may_start_at_once(folder: Path) -> None:
    outcomes: list[bool] = []
    threads = [threading.Thread(target=lambda: outcomes.append(_works(_fresh()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 4
    assert len(list(folder.iterdir())) == 1


def test_warm_leaves_nothing_to_compile(
    tiny_bundle: Path, var_bundle: Path, mar_bundle: Path, tmp_path: Path
) -> None:
    """In new processes: compiled, then loaded, ahead or when called; nothing is compiled twice."""
    code = f"""
        import sys
        from fewstep.runtime import Generator
        from fewstep.runtime.kernels.cpu import KERNELS, warm
        if "ahead" in sys.argv:
            warm()
            assert warm() < 0.5
        with Generator.open({str(tiny_bundle)!r}, threads=1) as generator:
            generator.generate(class_ids=[0, 1], steps=3, schedule="policy")
            generator.generate(class_ids=[0], steps=2, guidance=1.5, schedule="cosine")
            generator.generate(class_ids=[0], steps=2, guidance=0, schedule="cosine")
        with Generator.open({str(var_bundle)!r}, threads=1) as generator:
            generator.generate(class_ids=[0, 1], schedule="policy", reuse_first=True)
            generator.generate(class_ids=[0], guided_scales=2)
        with Generator.open({str(mar_bundle)!r}, threads=1) as generator:
            cached = dict(iterations=6, diffusion_steps="2", refresh=3, refresh_first=1)
            generator.generate(class_ids=[0, 1], recompute=0.1, **cached)
            generator.generate(class_ids=[0], recompute=0.1, reuse_guidance=True, **cached)
            generator.generate(class_ids=[0], guidance=1, **cached)
        kernels = [each for each in KERNELS.values() if hasattr(each, "signatures")]
        assert max(len(kernel.signatures) for kernel in kernels) == 1
        print(sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels))
    """
    for expected, how in (("0", "ahead"), ("17", "ahead"), ("17", "called")):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), how],
            capture_output=True,
            text=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            timeout=300,
        )
        assert done.stdout == f"{expected}\n", done.stderr


def test_numba_keeps_nothing_for_itself(folder: Path) -> None:
    """The hook is numba's own, not in its documentation."""
    assert isinstance(_fresh()._cache, cache.KernelCache)
    assert {*dir(numba.core.caching.NullCache)} - {"_abc_impl"} <= {*dir(cache.KernelCache)} | {
        "__abstractmethods__"
    }
