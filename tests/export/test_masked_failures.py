"""Exports that fail or are interrupted leave nothing behind; what was there before stays whole.

The step to ONNX, which takes seconds, is replaced by one that only describes the graph.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fewstep.export import Checkpoints, export_masked
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CheckpointError, OutputError
from fewstep.runtime.manifest import GraphInfo

STAGES = [
    "reading checkpoints",
    "exporting transformer",
    "exporting policy",
    "exporting decoder",
    "recording golden rollouts",
    "writing manifest",
]


def test_an_existing_output_is_kept(tiny_checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already; remove it or pass --force"):
        export_masked("adanat", tiny_checkpoints, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "mine.txt").read_text() == "mine"


def test_overwriting_replaces_the_whole_folder(
    tiny_checkpoints: Checkpoints, tmp_path: Path, quick: None
) -> None:
    out = tmp_path / "out"
    first = export_masked("adanat", tiny_checkpoints, out, command="first")
    (out / "stale.txt").write_text("of the old bundle")
    second = export_masked("adanat", tiny_checkpoints, out, overwrite=True, command="second")
    assert first.manifest.provenance.command == "first"
    assert Bundle.read(out).manifest == second.manifest
    assert second.manifest.provenance.command == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (out / "stale.txt").exists()


def test_the_stages_are_told_as_they_begin(
    tiny_checkpoints: Checkpoints, tmp_path: Path, quick: None
) -> None:
    told: list[str] = []
    export_masked("adanat", tiny_checkpoints, tmp_path / "out", progress=told.append)
    assert told == STAGES


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, CheckpointError])
def test_an_interruption_leaves_nothing_behind(
    stage: str,
    error: type[BaseException],
    tiny_checkpoints: Checkpoints,
    tmp_path: Path,
    quick: None,
) -> None:
    def interrupt(now: str) -> None:
        if now == stage:
            assert [path.name for path in tmp_path.iterdir()] != []  # work is under way
            raise error

    with pytest.raises(error):
        export_masked("adanat", tiny_checkpoints, tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", STAGES)
def test_an_interruption_keeps_the_old_bundle(
    stage: str, tiny_bundle: Path, tiny_checkpoints: Checkpoints, tmp_path: Path, quick: None
) -> None:
    def interrupt(now: str) -> None:
        if now == stage:
            raise KeyboardInterrupt

    out = shutil.copytree(tiny_bundle, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        export_masked("adanat", tiny_checkpoints, out, overwrite=True, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    kept, expected = ({p.name: p.read_bytes() for p in f.iterdir()} for f in (out, tiny_bundle))
    assert kept == expected


def test_an_interruption_within_a_graph_leaves_nothing_behind(
    tiny_checkpoints: Checkpoints, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_only = importlib.import_module("fewstep.export.masked").export_graph

    def interrupted(*arguments: Any) -> tuple[GraphInfo, float]:
        describe_only(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.export.masked.export_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_masked("adanat", tiny_checkpoints, tmp_path / "out")
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
    tiny_checkpoints: Checkpoints, tmp_path: Path, defaults: dict[str, object], message: str
) -> None:
    assert tiny_checkpoints.config is not None
    config = json.loads(tiny_checkpoints.config.read_text()) | {"defaults": defaults}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stages: list[str] = []
    files = dataclasses.replace(tiny_checkpoints, config=tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=message):
        export_masked("adanat", files, tmp_path / "out", progress=stages.append)
    assert stages == ["reading checkpoints"]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_bundle_is_never_replaced(
    tiny_checkpoints: Checkpoints, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"not a folder with bundle\.json"):
        export_masked("adanat", tiny_checkpoints, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
