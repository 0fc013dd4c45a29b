"""The tests' cache: what is kept, what is made again, and what goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import exported
from tests.cache import once


def test_a_bundle_is_exported_again_when_a_source_of_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, exports = tmp_path / "model.py", []

    def export(name: str, folder: Path) -> None:
        exports.append(name)
        (folder / "bundle").mkdir()
        (folder / "bundle" / "text").write_text(source.read_text())
        sources = exported._tools() | {"model.py": exported._digest(source)}
        (folder / "sources.json").write_text(json.dumps(sources))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(exported, "ROOT", tmp_path)
    monkeypatch.setattr(exported, "_start", export)
    for number, content in enumerate(["old", "old", "new", "old"]):
        source.write_text(content)
        copy = exported.copy_of("tiny", tmp_path / f"copy-{number}")
        assert (copy / "text").read_text() == content
    assert len(exports) == 2  # the first of the old, and the new
    monkeypatch.setattr(exported, "_TOOLS", ("pytest",))
    exported.copy_of("tiny", tmp_path / "other-tools")
    assert len(exports) == 3


def test_the_four_that_were_used_last_are_kept(tmp_path: Path) -> None:
    names = [f"part-{number:016}" for number in range(6)]
    for number, name in enumerate(names[:5]):
        once(tmp_path / name, lambda folder: None)
        os.utime(tmp_path / name, (number, number))
    once(tmp_path / names[1], lambda folder: None)  # used again
    once(tmp_path / names[5], lambda folder: None)
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {names[1], names[3], names[4], names[5]}


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError

    with pytest.raises(ValueError):
        once(tmp_path / "part-1", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["part.lock"]
