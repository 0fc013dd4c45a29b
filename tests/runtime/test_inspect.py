"""Inspection: sizes, provenance, damage; program and memory of a decode, before there is a plan.

Covered for decodes: sums, what guidance and a policy add, the size of the graph files, operations
in words, agreement with the plan that ``generate`` really makes, and requests that it would refuse.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.generator import Generator
from fewstep.runtime.inspect import described, inspect, planned_decode
from fewstep.runtime.program import Copy, Launch, Run, View


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


# --- the program and memory of a decode


def _with_defaults(path: Path, **changes: Any) -> Bundle:
    """The bundle with other defaults, in memory."""
    read = Bundle.read(path)
    model = read.manifest.model.model_copy(update={"defaults": MaskedSettings(**changes)})
    return Bundle(path, read.manifest.model_copy(update={"model": model}))


def _bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * int(np.dtype(dtype).itemsize)


def _made_by(generator: Generator, schedule: str | None, batch: int) -> list[tuple[Any, int]]:
    """Keys and bytes of the plans that ``generate`` makes."""
    generator.generate(class_ids=[0] * batch, schedule=schedule)
    plans = generator.plans._plans
    return [(key, plan.program.bytes) for key, plan in plans.items()]


@given(
    batch=st.integers(1, 40),
    steps=st.integers(1, 16),
    schedule=st.sampled_from(["cosine", "linear", "policy"]),
)
def test_totals_are_the_sums_of_the_buffers(
    tiny_bundle: Path, batch: int, steps: int, schedule: str
) -> None:
    planned = planned_decode(Bundle.read(tiny_bundle), batch=batch, steps=steps, schedule=schedule)
    assert (planned.batch, planned.settings["steps"]) == (batch, steps)
    sizes = {
        name: _bytes_of(spec.shape, spec.dtype)
        for name, spec in planned.program.every_buffer.items()
    }
    shared = sum(sizes.pop(name) for name in planned.program.shared)
    assert (planned.total_bytes, planned.shared_bytes) == (sum(sizes.values()), shared)


def test_total_of_a_plan_counted_by_hand(tiny_bundle: Path) -> None:
    """2 images of 16 tokens of 24 codes, 32 features, 3 steps, guidance: 4 rows per pass."""
    planned = planned_decode(Bundle.read(tiny_bundle), batch=2, steps=3)
    inputs = 4 * 4 + 2 * 8 + 2 * 16 * (4 + 1 + 4) + 3 * 2 * 4 * 4 + 4
    tokens = 4 * 4 * 16 * 4 + 3 * 2 * 16 * 4 + 2 * 16 * 4 + 4 * 16 * 4
    passes = 4 * 16 * 24 * 4 + 4 * 16 * 32 * 4
    images = 2 * 3 * 8 * 8 * (4 + 1)
    assert planned.total_bytes == inputs + tokens + passes + images
    # Unconditional logits, and step 0 of 5 classes.
    assert planned.shared_bytes == 16 * 24 * 4 + 5 * 16 * (24 + 32) * 4


@pytest.mark.parametrize(
    ("schedule", "graphs"),
    [("linear", {"transformer", "decoder"}), ("policy", {"transformer", "policy", "decoder"})],
)
def test_weights_are_the_files_of_the_graphs_that_run(
    tiny_bundle: Path, schedule: str, graphs: set[str]
) -> None:
    sizes = [(tiny_bundle / f"{name}.onnx").stat().st_size for name in graphs]
    assert planned_decode(Bundle.read(tiny_bundle), schedule=schedule).weights_bytes == sum(sizes)


def test_external_weights_count_once(tiny_bundle: Path) -> None:
    read = Bundle.read(tiny_bundle)
    file = read.manifest.files["decoder.onnx"].model_copy(update={"bytes": 10**9})
    graphs = {
        name: graph.model_copy(update={"external": ("weights.data",)})
        for name, graph in read.manifest.graphs.items()
    }
    changes = {"graphs": graphs, "files": read.manifest.files | {"weights.data": file}}
    changed = Bundle(tiny_bundle, read.manifest.model_copy(update=changes))
    added = planned_decode(changed).weights_bytes - planned_decode(read).weights_bytes
    assert added == 10**9


def test_a_policy_adds_its_buffers_and_changes_no_other(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    fixed, policy = (
        planned_decode(bundle, batch=2, schedule=name) for name in ("cosine", "policy")
    )
    added = policy.program.buffers.keys() - fixed.program.buffers.keys()
    assert added == {"step_ids", "policy_step", "action"}
    assert policy.total_bytes - fixed.total_bytes == 8 * 2 * 4 + 2 * 4 + 2 * 4 * 4
    assert (fixed.key.policy, policy.key.policy) == (None, "policy")
    assert policy.shared_bytes == fixed.shared_bytes


def test_defaults_are_those_of_the_bundle(tiny_bundle: Path) -> None:
    planned = planned_decode(_with_defaults(tiny_bundle, steps=5, schedule="policy"))
    assert (planned.key.batch, planned.key.steps, planned.key.policy) == (1, 5, "policy")
    # The policy decides guidance and temperatures.
    wanted = {"steps": 5, "schedule": "policy-exported", "decoder": "full"}
    assert planned.settings == wanted


@pytest.mark.parametrize("schedule", [None, "linear", "policy"])
@pytest.mark.parametrize("batch", [1, 3])
def test_generate_makes_the_plan_that_was_foretold(
    tiny_bundle: Path, schedule: str | None, batch: int
) -> None:
    with Generator.open(tiny_bundle, threads=1) as generator:
        made = _made_by(generator, schedule, batch)
    planned = planned_decode(Bundle.read(tiny_bundle), batch=batch, schedule=schedule)
    assert made == [(planned.key, planned.total_bytes)]


def test_bundle_without_guidance_has_the_plan_that_generate_makes(tiny_bundle: Path) -> None:
    """Guidance doubles the transformer's buffers; without it there are no unconditional logits."""
    bundle = _with_defaults(tiny_bundle, guidance=(0.0, 0.0))
    with Generator.open(bundle, threads=1) as generator:
        made = _made_by(generator, None, 2)
    planned = planned_decode(bundle, batch=2)
    assert made == [(planned.key, planned.total_bytes)]
    assert planned.program.shared.keys() == {"first_logits", "first_features"}


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"batch": 0}, "batch must be .*at least 1, got 0"),
        ({"batch": -3}, "batch must be .*at least 1, got -3"),
        ({"batch": 1.5}, "batch must be .*got 1.5"),
        ({"steps": 0}, "steps must be 1 … 16"),
        ({"steps": 17}, "steps must be 1 … 16"),
        ({"steps": 2.5}, "steps must be an integer"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"schedule": ""}, "unknown schedule"),
        ({"step": 2}, "unknown setting 'step'.*Did you mean 'steps'"),
    ],
)
def test_what_generate_would_refuse_is_refused(
    tiny_bundle: Path, wish: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        planned_decode(Bundle.read(tiny_bundle), **wish)


def test_policy_of_a_bundle_without_one_is_refused(tiny_text_bundle: Path) -> None:
    with pytest.raises(RequestError, match="has no policy network"):
        planned_decode(Bundle.read(tiny_text_bundle), schedule="policy")


def test_guidance_without_an_empty_text_is_refused(tiny_text_bundle: Path) -> None:
    read = Bundle.read(tiny_text_bundle)
    condition = read.manifest.model.condition.model_copy(update={"unconditional_file": None})
    model = read.manifest.model.model_copy(update={"condition": condition})
    bundle = Bundle(tiny_text_bundle, read.manifest.model_copy(update={"model": model}))
    text = np.zeros((1, 3, 12), np.float32)
    with Generator.open(bundle, threads=1) as generator, pytest.raises(RequestError):
        generator.generate(text=text)
    with pytest.raises(RequestError, match="no unconditional text"):
        planned_decode(bundle)


def test_a_planned_decode_needs_no_file_but_the_manifest(bundle_copy: Path) -> None:
    for path in bundle_copy.glob("*.onnx"):
        path.unlink()
    assert planned_decode(Bundle.read(bundle_copy)).total_bytes > 0


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_a_planned_decode_is_json(tiny_bundle: Path, schedule: str) -> None:
    planned = planned_decode(Bundle.read(tiny_bundle), batch=2, steps=3, schedule=schedule)
    data = json.loads(json.dumps(planned.as_dict()))
    assert (data["batch"], data["settings"]["steps"], data["key"]["guided"]) == (2, 3, True)
    assert data["key"]["policy"] == (schedule if schedule == "policy" else None)
    assert data["buffers"]["tokens"] == {
        "shape": [4, 4, 16],
        "dtype": "int32",
        "role": "output",
        "aligned_rows": False,
        "bytes": 1024,
        "shared": False,
    }
    sums = {shared: _sum(data["buffers"], shared) for shared in (False, True)}
    assert sums == {False: data["total_bytes"], True: data["shared_bytes"]}
    assert data["weights_bytes"] == planned.weights_bytes
    assert len(data["operations"]) == len(planned.program.ops)


def _sum(buffers: dict[str, dict[str, Any]], shared: bool) -> int:
    return sum(each["bytes"] for each in buffers.values() if each["shared"] == shared)


def test_operations_in_words() -> None:
    run = Run("trunk", {"past": View("cache")[0:3], "out": View("logits")}, step=2)
    assert described(run) == {
        "op": "run",
        "what": "trunk",
        "on": "past=cache[0:3], out=logits",
        "step": "2",
    }
    launch = Launch("fill", {"target": View("tokens")[1][:4], "value": 0.25}, ("target",))
    words = {"op": "launch", "what": "fill", "on": "target=tokens[1][0:4], value=0.25"}
    assert described(launch) == words | {"step": "0"}
    assert described(Copy(View("a"), View("b")[7]))["on"] == "a ← b[7]"


def test_successive_rows_are_one_in_words() -> None:
    cached = {
        name: View("cache", row).reshaped(8, 2)[first:last]
        for row, block in enumerate("ab")
        for name, first, last in ((f"past_{block}", 0, 3), (f"new_{block}", 3, 5))
    }
    two = Run("trunk", {**cached, "out": View("x")})
    assert described(two)["on"].startswith("past_a=cache[0][0:3], new_a=cache[0][3:5], past_b=")
    for row, name in ((2, "past_c"), (3, "past_d")):
        cached[name] = View("cache", row).reshaped(8, 2)[0:3]
    four = Run("trunk", {**cached, "out": View("x")})
    assert described(four)["on"] == (
        "past_a … past_d=cache[0 … 3][0:3], new_a=cache[0][3:5], new_b=cache[1][3:5], out=x"
    )
    skipping = {name: View("rows", row) for name, row in (("a", 0), ("b", 2), ("c", 4))}
    assert described(Run("some", skipping))["on"] == "a=rows[0], b=rows[2], c=rows[4]"
