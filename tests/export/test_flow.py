"""Exports that fail or are interrupted leave nothing behind; what was there before stays whole.

The step to ONNX, which takes seconds, is replaced by one that only describes the graph.
"""

from __future__ import annotations

import importlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.export.changed import configured

from fewstep.export.flow import export
from fewstep.runtime import files as runtime_files
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CheckpointError, OutputError
from fewstep.runtime.records import GraphInfo

STAGES = [
    "reading checkpoints",
    "exporting transformer",
    "exporting policy",
    "exporting decoder",
    "recording golden rollouts",
    "looking at images",
    "writing manifest",
]


def test_an_existing_output_is_kept(tiny_checkpoints: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already; remove it or pass --force"):
        export("adanat", tiny_checkpoints, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "mine.txt").read_text() == "mine"


def test_overwriting_replaces_the_whole_folder(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    out = tmp_path / "out"
    first = export("adanat", tiny_checkpoints, out, command="first")
    (out / "stale.txt").write_text("of the old bundle")
    second = export("adanat", tiny_checkpoints, out, overwrite=True, command="second")
    assert first.manifest.provenance.command == "first"
    assert Bundle.read(out).manifest == second.manifest
    assert second.manifest.provenance.command == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (out / "stale.txt").exists()


def test_the_stages_are_told_as_they_begin(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    told: list[tuple[str, float]] = []
    export(
        "adanat",
        tiny_checkpoints,
        tmp_path / "out",
        progress=lambda stage, done: told.append((stage, done)),
    )
    assert told == [(stage, 0.0) for stage in STAGES]


def test_every_file_is_hashed_once(
    tiny_checkpoints: dict[str, Any],
    tmp_path: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: Counter[str] = Counter()

    def counted(path: Path) -> str:
        hashed[path.name] += 1
        return runtime_files.sha256(path)

    for module in ("export.flow", "runtime.bundle"):
        monkeypatch.setattr(f"fewstep.{module}.sha256", counted)
    bundle = export("adanat", tiny_checkpoints, tmp_path / "out")
    read = [path.name for path in tiny_checkpoints.values()]
    assert hashed == Counter([*bundle.manifest.files, *read])
    assert Bundle.read(tmp_path / "out").damage() == {}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, CheckpointError])
def test_an_interruption_leaves_nothing_behind(
    stage: str,
    error: type[BaseException],
    tiny_checkpoints: dict[str, Any],
    tmp_path: Path,
    quick: None,
) -> None:
    def interrupt(now: str, done: float) -> None:
        if now == stage:
            assert [path.name for path in tmp_path.iterdir()] != []  # work is under way
            raise error

    with pytest.raises(error):
        export("adanat", tiny_checkpoints, tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", STAGES)
def test_an_interruption_keeps_the_old_bundle(
    stage: str, tiny_bundle: Path, tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    def interrupt(now: str, done: float) -> None:
        if now == stage:
            raise KeyboardInterrupt

    out = shutil.copytree(tiny_bundle, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        export("adanat", tiny_checkpoints, out, overwrite=True, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    kept, expected = ({p.name: p.read_bytes() for p in f.iterdir()} for f in (out, tiny_bundle))
    assert kept == expected


def test_an_interruption_within_a_graph_leaves_nothing_behind(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_only = importlib.import_module("fewstep.export.flow").export_graph

    def interrupted(*arguments: Any) -> GraphInfo:
        describe_only(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.export.flow.export_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export("adanat", tiny_checkpoints, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"steps": 17}, "steps must be 1 … 16"),
        ({"guidance": [0.0, -1.0]}, "at least 0"),
    ],
)
def test_impossible_defaults_are_refused_before_any_export(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, defaults: dict[str, object], message: str
) -> None:
    files = configured(tiny_checkpoints, tmp_path, defaults=defaults)
    stages: list[str] = []
    with pytest.raises(CheckpointError, match=message):
        export("adanat", files, tmp_path / "out", progress=lambda each, _: stages.append(each))
    assert stages == ["reading checkpoints"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["adanat", "maskgit"])
def test_presets_that_no_generation_could_use_are_refused(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, form: str
) -> None:
    files = configured(tiny_checkpoints, tmp_path, presets={"fast": {"steps": 17}})
    if form == "maskgit":
        del files["policy"]
    with pytest.raises(CheckpointError, match="preset 'fast': steps must be 1 … 16"):
        export(form, files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_bundle_is_never_replaced(
    tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"not a folder with bundle\.json"):
        export("adanat", tiny_checkpoints, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
