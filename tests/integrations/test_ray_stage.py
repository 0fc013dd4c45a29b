"""What Ray's actors do with blocks of an order, here: texts, parts of batches, errors."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import Terminal
from tests.prompts import with_encoder

from fewstep import EngineError, RequestError
from fewstep.integrations.ray import bulk

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

_SAME: dict[str, Any] = {"batch": 2, "block": 4, "steps": 2, "backend": "onnxruntime"}
_WORDS = ["--batch", 2, "--steps", 2, "--backend", "onnxruntime", "--threads", 1]


class _Data:
    """As much of ``ray.data`` as a run takes, with one actor that is here."""

    def from_arrow(self, tables: Sequence[Any]) -> _Data:
        self.tables = tables
        return self

    def map_batches(self, stage: Any, *, fn_constructor_args: list[Any], **how: Any) -> _Data:
        assert how["batch_size"] == 1 and how["batch_format"] == "pyarrow"
        self.actor = stage(*fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for table in self.tables:
            yield from self.actor(table).to_pylist()

    def ActorPoolStrategy(self, **how: Any) -> None: ...

    def is_initialized(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ray_module", lambda name: _Data())


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prompts_and_states_are_those_of_generate(
    fewstep: Terminal, tiny_text_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_text_bundle, tmp_path / "bundle"))
    with_encoder(bundle)
    prompts, states = ["a red dog", "a cat"], tmp_path / "states.npy"
    np.save(states, np.random.default_rng(0).standard_normal((2, 3, 12), np.float32))
    said = [word for each in prompts for word in ("--text", each)]
    with_negative: dict[str, Any] = {"negative": "green"}
    for wanted, words, others in (
        (prompts, [*said, "--negative", "green"], with_negative),
        (np.load(states), ["--text-file", states], {}),
    ):
        alone, out = tmp_path / f"alone-{len(words)}", tmp_path / f"set-{len(words)}"
        done = fewstep("generate", bundle, *words, "--count", 3, "--out", alone, *_WORDS)
        assert done.code == 0, done.err
        made = bulk.generate(bundle, wanted, count=3, out=out, **others, **_SAME)
        assert (made.made, made.kept) == (6, 0)
        assert _contents(out) == _contents(alone)


def test_what_is_missing_is_made(tiny_bundle: Path, tmp_path: Path) -> None:
    asked = {"count": 7, "seed": 2**63, "out": tmp_path / "set", **_SAME}
    assert bulk.generate(tiny_bundle, ["shirt", 4], **asked).made == 14
    whole = _contents(tmp_path / "set")
    for name in sorted(whole)[3:6]:
        (tmp_path / "set" / name).unlink()
    made = bulk.generate(tiny_bundle, ["shirt", 4], **asked)
    assert (made.made, made.kept) == (3, 11)
    assert _contents(tmp_path / "set") == whole


def test_errors_of_an_actor_stay_what_they_are(tiny_bundle: Path, tmp_path: Path) -> None:
    asked = {**_SAME, "backend": "tensorrt", "out": tmp_path / "set"}
    with pytest.raises(EngineError, match="no engines of tensorrt; build them with"):
        bulk.generate(tiny_bundle, "shirt", **asked)
    assert not (tmp_path / "set").exists()


def test_a_cluster_that_does_not_answer_is_told(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, of the one that is named and of the last one that was started here."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(_Data, "is_initialized", lambda self: False)
    monkeypatch.setattr(bulk, "_CURRENT", tmp_path / "current")
    monkeypatch.setenv("RAY_ADDRESS", address)

    def refused() -> None:
        with pytest.raises(RequestError, match=f"{address} .*: set RAY_ADDRESS to another"):
            bulk.generate(tiny_bundle, "all", out=tmp_path / "out", **_SAME)
        assert not (tmp_path / "out").exists()

    refused()
    monkeypatch.delenv("RAY_ADDRESS")
    (tmp_path / "current").write_text(f"{address}\n")
    refused()
