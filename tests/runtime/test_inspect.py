"""Inspection: sizes, provenance and damage."""

from __future__ import annotations

import json
from pathlib import Path

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.inspect import inspect


def test_intact_bundle(tiny_bundle: Path) -> None:
    inspection = inspect(Bundle.read(tiny_bundle))
    sizes = [p.stat().st_size for p in tiny_bundle.iterdir() if p.name != "bundle.json"]
    assert inspection.total_bytes == sum(sizes)
    assert inspection.damage == {}


def test_damage_is_named_file_by_file(bundle_copy: Path) -> None:
    (bundle_copy / "decoder.onnx").unlink()
    with (bundle_copy / "policy.onnx").open("ab") as file:
        file.write(b"x")
    damage = inspect(Bundle.read(bundle_copy)).damage
    assert damage["decoder.onnx"] == "is missing"
    assert "bytes where the manifest says" in damage["policy.onnx"]
    assert set(damage) == {"decoder.onnx", "policy.onnx"}


def test_inspection_is_json(tiny_bundle: Path) -> None:
    data = json.loads(json.dumps(inspect(Bundle.read(tiny_bundle)).as_dict()))
    assert data["manifest"]["family"] == "adanat"
