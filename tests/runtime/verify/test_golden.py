"""Golden rollouts: what a recording holds, what a replay of it gives, and which are refused.

A recording is compared with ONNX Runtime's own sessions, run by hand on the recorded tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tests.runtime.verify.rehash import rehash

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import Recording, record, recordings, replay, verify

_STEPS, _TOKENS, _MASK, _NO_CLASS = 4, 16, 24, 5

Arrays = dict[str, Array]


def _run(bundle: Path, graph: str, **inputs: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle / f"{graph}.onnx", options)
    found: list[Array] = session.run(None, inputs)
    return found


@pytest.fixture(scope="module")
def golden(tiny_bundle: Path) -> dict[str, Recording]:
    return recordings(Bundle.read(tiny_bundle))


# --- what is recorded


def test_the_default_schedule_and_every_policy_are_recorded(golden: dict[str, Recording]) -> None:
    assert list(golden) == ["cosine", "policy"]
    assert golden["cosine"].settings["schedule"] == "cosine"
    policy = {"steps": 4, "schedule": "policy-exported", "decoder": "full"}
    assert golden["policy"].settings == policy
    for each in golden.values():
        assert each.settings["steps"] == _STEPS
        assert each.condition.tolist() == [0, 4]  # the ends of the classes
        assert len(set(each.seeds.tolist())) == 2


@pytest.mark.parametrize("name", ["cosine", "policy"])
def test_a_recording_has_every_run_and_decision(
    golden: dict[str, Recording], generator: Generator, name: str
) -> None:
    found = golden[name]
    graphs = ["transformer"] if name == "cosine" else ["transformer", "policy"]
    assert [run.graph for run in found.runs.values()] == [*graphs * _STEPS, "decoder"]
    assert list(found.runs) == list(range(len(found.runs)))
    shapes = {buffer: value.shape for buffer, value in found.decisions.items()}
    assert shapes == {"tokens": (5, 2, 16), "sampled": (4, 2, 16), "parameters": (4, 2, 4)}
    request = found.request(generator.family, generator.model)
    trace = generator.run(request).trace
    for buffer, value in found.decisions.items():
        np.testing.assert_allclose(getattr(trace, buffer), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cosine", "policy"])
def test_recorded_outputs_are_those_of_the_graphs_for_recorded_tokens(
    golden: dict[str, Recording], tiny_bundle: Path, name: str
) -> None:
    found = golden[name]
    positions = found.positions[_TOKENS]
    assert len(set(positions.tolist())) == 8
    tokens, classes = found.decisions["tokens"], np.array([0, 4, _NO_CLASS, _NO_CLASS], np.int32)
    runs = iter(found.runs.values())
    for step in range(_STEPS):
        both = np.tile(tokens[step], (2, 1))
        logits, features = _run(tiny_bundle, "transformer", tokens=both, condition=classes)
        recorded = next(runs).outputs["logits"]
        np.testing.assert_allclose(recorded, logits[:, positions], rtol=1e-4, atol=1e-4)
        if name == "policy":
            at = np.full(2, step, np.int32)
            (action,) = _run(tiny_bundle, "policy", features=features[:2], step=at)
            np.testing.assert_allclose(next(runs).outputs["action"], action, rtol=1e-4, atol=1e-4)
    (image,) = _run(tiny_bundle, "decoder", tokens=found.decisions["sampled"][-1])
    np.testing.assert_allclose(next(runs).outputs["image"], image, atol=1e-4)


def test_a_recording_goes_through_a_file(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    with Generator.open(copy, threads=1) as generator:
        made = record(generator, "mine", {"steps": 3, "guidance": (1.0, 0.5)}, images=3)
        np.savez(copy / "golden.npz", **made.arrays())  # type: ignore[arg-type]
        rehash(copy)
        (found,) = recordings(Bundle.read(copy)).values()
        assert found.name == "mine"
        assert found.arrays().keys() == made.arrays().keys()
        for name, value in made.arrays().items():
            np.testing.assert_array_equal(found.arrays()[name], value)
    with Generator.open(copy, threads=1, max_batch=2) as other:  # three images in two batches
        assert verify(other).passed


def test_text_is_recorded_too(tiny_text_bundle: Path) -> None:
    (found,) = recordings(Bundle.read(tiny_text_bundle)).values()
    assert found.condition.shape == (2, 3, 12)
    assert (found.condition[0] != found.condition[1]).any()


# --- replays


@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_a_replay_runs_on_recorded_decisions_whatever_was_decided(
    tiny_bundle: Path, golden: dict[str, Recording], max_batch: int
) -> None:
    """With other seeds nothing would be decided alike: the recording's tokens are read anyway."""
    changed = replace(golden["policy"], seeds=golden["policy"].seeds + np.uint64(77))
    tokens = golden["policy"].decisions["tokens"]
    sampled = golden["policy"].decisions["sampled"]
    seen = []
    with Generator.open(tiny_bundle, threads=1, max_batch=max_batch) as generator:
        for each in replay(generator, changed):
            images, call = each.images, each.call
            seen.append((each.index, images.start))
            if call.graph == "transformer":
                expected = np.tile(tokens[call.step, images], (2, 1))
                np.testing.assert_array_equal(call.inputs["tokens"], expected)
            if call.graph == "decoder":
                np.testing.assert_array_equal(call.inputs["tokens"], sampled[-1, images])
    batches = range(0, 2, max_batch)
    assert seen == [(index, start) for start in batches for index in range(2 * _STEPS + 1)]


# --- what is refused


def _changed(change: Callable[[Arrays], object]) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        arrays = dict(np.load(bundle / "golden.npz"))
        change(arrays)
        np.savez(bundle / "golden.npz", **arrays)
        rehash(bundle)

    return apply


def _without(name: str) -> Callable[[Path], None]:
    return _changed(lambda arrays: arrays.pop(name))


def _with(name: str, value: Callable[[Array], Any]) -> Callable[[Path], None]:
    return _changed(lambda arrays: arrays.update({name: np.asarray(value(arrays[name]))}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed(dict.clear), "it holds no rollout"),
        (_without("cosine/settings"), "'cosine' lacks settings"),
        (_without("cosine/seeds"), "'cosine' lacks seeds"),
        (_without("cosine/positions/16"), "'cosine' lacks positions/16"),
        (_without("cosine/decisions/sampled"), "'cosine' lacks decisions/sampled"),
        (_without("cosine/runs/2/transformer/logits"), "lacks runs/2/transformer/logits"),
        (_without("policy/runs/8/decoder/image"), "'policy' lacks runs/8/decoder/image"),
        (_with("cosine/settings", lambda _: "no JSON"), "'cosine' does not fit"),
        (_with("cosine/settings", lambda _: "[1]"), "'cosine' does not fit"),
        (
            _with("cosine/settings", lambda _: json.dumps({"steps": 4, "scales": 3})),
            "does not fit: unknown setting 'scales'",
        ),
        (
            _with("policy/settings", lambda _: json.dumps({"steps": 4, "schedule": "policy-9"})),
            "does not fit: unknown schedule 'policy-9'",
        ),
        (
            _with("cosine/settings", lambda _: json.dumps({"steps": 5})),
            r"decisions/tokens is \[5, 2, 16\], not \[6, 2, 16\]",
        ),
        (
            _with("cosine/decisions/tokens", lambda tokens: tokens[:, :, :9]),
            r"decisions/tokens is \[5, 2, 9\], not \[5, 2, 16\]",
        ),
        (
            _with("cosine/runs/0/transformer/logits", lambda logits: logits[..., :7]),
            r"transformer/logits is \[4, 8, 7\], not \[4, 8, 24\]",
        ),
        (_with("cosine/condition", lambda ids: ids[:1]), "1 conditions, 2 seeds"),
        (_with("cosine/condition", lambda ids: ids + 9), "class ids must be 0 … 4, got 9, 13"),
        (_with("cosine/condition", lambda ids: np.zeros((2, 3, 12))), "must be a list of integers"),
    ],
)
def test_recordings_that_are_incomplete_or_of_another_model_are_refused(
    bundle_copy: Path, change: Callable[[Path], None], message: str
) -> None:
    change(bundle_copy)
    with pytest.raises(BundleError, match=message) as caught:
        recordings(Bundle.read(bundle_copy))
    assert str(caught.value).startswith(f"{bundle_copy}/golden.npz: ")
    assert str(caught.value).endswith("; export the bundle again")
    assert "\n" not in str(caught.value)


def test_recordings_of_before_are_refused_with_the_command_that_made_the_bundle(
    bundle_copy: Path,
) -> None:
    shapes = {"logits": (4, 4, 8, 24), "sampled": (4, 2, 16), "tokens": (5, 2, 16)}
    old = {f"cosine/{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    np.savez(bundle_copy / "golden.npz", **old)  # type: ignore[arg-type]
    command = "fewstep export adanat --transformer a.pth --out here"
    provenance = Bundle.read(bundle_copy).manifest.provenance.model_copy(
        update={"command": command}
    )
    rehash(bundle_copy, provenance=provenance.model_dump())
    with pytest.raises(BundleError, match="recorded by an older fewstep") as caught:
        recordings(Bundle.read(bundle_copy))
    expected = f"; export the bundle again, it was made with: {command} --force"
    assert str(caught.value).endswith(expected)


def test_a_file_that_is_no_archive_is_refused(bundle_copy: Path) -> None:
    with (bundle_copy / "golden.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    rehash(bundle_copy)
    with pytest.raises(BundleError, match="is not an array archive"):
        recordings(Bundle.read(bundle_copy))


def test_a_bundle_without_golden_rollouts_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "golden.npz").unlink()
    rehash(bundle_copy, golden=None)
    with pytest.raises(BundleError, match="no golden rollouts"):
        recordings(Bundle.read(bundle_copy))


def test_a_wrong_recording_is_caught(bundle_copy: Path) -> None:
    _with("cosine/runs/4/decoder/image", lambda image: image * 0.9)(bundle_copy)
    with Generator.open(bundle_copy, threads=1) as generator:
        checks = verify(generator).checks
    assert {(c.rollout, c.metric) for c in checks if not c.passed} == {("cosine", "psnr_db")}
