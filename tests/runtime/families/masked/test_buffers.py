"""The buffers of a masked program: what is said before anything is allocated is what is allocated.

Covered: names, shapes, dtypes and roles against a table for the tiny bundles, with guidance,
policy and text; sizes from the graphs of the manifest and from open engines; what guidance doubles
and what a batch and a step add; other dtypes; and the arrays of plans that were really made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.devices.cpu import CpuDevice, CpuWorkspace, host_array
from fewstep.runtime.families import Model, model_of
from fewstep.runtime.families.masked.program import MaskedKey, masked_program
from fewstep.runtime.generator import Generator
from fewstep.runtime.memory import Plans
from fewstep.runtime.program import Program
from fewstep.runtime.records import GraphInfo

Table = dict[str, tuple[tuple[int, ...], str, str]]

_PLAIN = MaskedKey(batch=3, steps=5, guided=False, policy=None)
_TABLE: Table = {
    "condition": ((3,), "int32", "input"),
    "seeds": ((3,), "uint64", "input"),
    "given": ((3, 16), "int32", "input"),
    "mask": ((3, 16), "uint8", "input"),
    "parameters": ((5, 3, 4), "float32", "input"),
    "error": ((1,), "int32", "status"),
    "tokens": ((6, 3, 16), "int32", "output"),
    "sampled": ((5, 3, 16), "int32", "output"),
    "pixels": ((3, 8, 8, 3), "uint8", "output"),
    "transformer_tokens": ((3, 16), "int32", "internal"),
    "confidence": ((3, 16), "float32", "internal"),
    "logits": ((3, 16, 24), "float32", "internal"),
    "features": ((3, 16, 32), "float32", "internal"),
    "image": ((3, 3, 8, 8), "float32", "internal"),
}
_GUIDED: Table = _TABLE | {
    "condition": ((6,), "int32", "input"),
    "tokens": ((6, 6, 16), "int32", "output"),
    "transformer_tokens": ((6, 16), "int32", "internal"),
    "logits": ((6, 16, 24), "float32", "internal"),
    "features": ((6, 16, 32), "float32", "internal"),
}
_KEPT: Table = {"first_entries": ((3, 16), "int32", "input")}
_POLICY: Table = {
    "parameters": ((5, 3, 4), "float32", "output"),
    "step_ids": ((5, 3), "int32", "input"),
    "policy_step": ((3,), "int32", "internal"),
    "action": ((3, 4), "float32", "internal"),
}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return model_of(Bundle.read(tiny_bundle))


def _as_table(specs: Mapping[str, BufferSpec]) -> Table:
    return {name: (spec.shape, spec.dtype, spec.role) for name, spec in specs.items()}


def _without_features(table: Table) -> Table:
    return {name: row for name, row in table.items() if name != "features"}


# --- what is said


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (_PLAIN, _TABLE | _KEPT),
        (replace(_PLAIN, guided=True), _GUIDED | _KEPT),
        (replace(_PLAIN, guided=True, reuse=False), _GUIDED),
        (replace(_PLAIN, policy="policy"), _TABLE | _KEPT | _POLICY),
        (replace(_PLAIN, guided=True, policy="policy"), _GUIDED | _KEPT | _POLICY),
    ],
)
def test_buffers_of_a_class_conditional_bundle(
    model: Model, key: MaskedKey, expected: Table
) -> None:
    assert _as_table(masked_program(model, key).buffers) == expected


@pytest.mark.parametrize("guided", [False, True])
def test_buffers_of_a_text_conditional_bundle(tiny_text_bundle: Path, guided: bool) -> None:
    """Text states instead of class ids; without a policy the transformer gives no features."""
    model = model_of(Bundle.read(tiny_text_bundle))
    found = _as_table(masked_program(model, replace(_PLAIN, guided=guided)).buffers)
    condition = ((6 if guided else 3, 3, 12), "float32", "input")
    expected = _without_features(_GUIDED if guided else _TABLE) | {"condition": condition}
    assert found == expected


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("reuse", [False, True])
def test_the_constant_is_the_logits_of_one_image(model: Model, guided: bool, reuse: bool) -> None:
    program = masked_program(model, replace(_PLAIN, guided=guided, reuse=reuse))
    constant = {"unconditional_logits": ((1, 16, 24), "float32", "internal")}
    assert _as_table(_constants(program)) == (constant if guided and reuse else {})


def test_a_first_step_without_guidance_needs_no_constant(model: Model) -> None:
    program = masked_program(model, replace(_PLAIN, guided=True, unguided=(0, 2)))
    assert not program.constants
    runs = [shapes["tokens"] for run, shapes in program.runs() if run.graph == "transformer"]
    assert runs == [(6, 16), (3, 16), (6, 16), (6, 16)]  # steps 1 … 4


@pytest.mark.parametrize(("batch", "entries"), [(1, 5), (3, 5), (8, 8)])
def test_rows_are_kept_for_every_class_or_a_batch(model: Model, batch: int, entries: int) -> None:
    program = masked_program(model, MaskedKey(batch, 2, guided=True, policy=None))
    ((name, kept),) = program.kept.items()
    assert name == f"first_step_{batch}"
    shapes = {"first_logits": (entries, 16, 24), "first_features": (entries, 16, 32)}
    assert {each: spec.shape for each, spec in kept.buffers.items()} == shapes
    (run,) = (shapes["tokens"] for _, shapes in kept.program.runs())
    assert run == (batch, 16)


def test_rows_that_take_too_much_are_not_kept(model: Model) -> None:
    """32 MiB hold no batch of 600,000 codes at 16 positions; of nine classes one is mostly new."""
    assert not masked_program(model, replace(_PLAIN, batch=9)).kept
    wide = replace(model, info=model.info.model_copy(update={"codebook_size": 600_000}))
    assert not masked_program(wide, _PLAIN).kept
    assert masked_program(wide, replace(_PLAIN, guided=True)).constants


def _constants(program: Program) -> dict[str, BufferSpec]:
    return {name: each.buffers[name] for name, each in program.constants.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dtypes_are_those_of_the_graphs(model: Model, dtype: str) -> None:
    graphs = dict(model.graphs)
    for name in ("transformer", "decoder"):
        graph = graphs[name]
        assert isinstance(graph, GraphInfo)
        graphs[name] = _with_outputs(graph, dtype)
    changed = replace(model, graphs=graphs)
    found = masked_program(changed, _PLAIN).buffers
    assert {name for name, spec in found.items() if spec.dtype == "float16"} == (
        {"logits", "features", "image"} if dtype == "float16" else set()
    )
    assert found["logits"].bytes == 3 * 16 * 24 * np.dtype(dtype).itemsize
    (constant,) = _constants(masked_program(changed, replace(_PLAIN, guided=True))).values()
    assert constant.dtype == dtype


def _with_outputs(graph: GraphInfo, dtype: str) -> GraphInfo:
    outputs = {
        name: info.model_copy(update={"dtype": dtype}) for name, info in graph.outputs.items()
    }
    return graph.model_copy(update={"outputs": outputs})


# --- how it grows


@given(batch=st.integers(1, 9), steps=st.integers(1, 16), policy=st.sampled_from([None, "policy"]))
def test_guidance_doubles_what_the_transformer_reads_and_writes_and_nothing_else(
    model: Model,
    batch: int,
    steps: int,
    policy: str | None,
) -> None:
    plain, guided = (
        masked_program(model, MaskedKey(batch, steps, guided, policy)).buffers
        for guided in (False, True)
    )
    assert plain.keys() == guided.keys()
    doubled = {name for name in plain if guided[name].bytes == 2 * plain[name].bytes}
    assert doubled == {"condition", "tokens", "transformer_tokens", "logits", "features"}
    assert all(guided[name] == plain[name] for name in plain.keys() - doubled)


@given(batch=st.integers(1, 8), steps=st.integers(1, 16), guided=st.booleans())
def test_bytes_per_image_and_step(model: Model, batch: int, steps: int, guided: bool) -> None:
    """By hand: 16 tokens of 24 codes, features of 32, images of 3·8·8."""

    def size(batch: int, steps: int) -> int:
        return masked_program(model, MaskedKey(batch, steps, guided, None)).bytes

    halves = 1 + guided
    logits, features, tokens, image = 4 * 16 * 24, 4 * 16 * 32, 4 * 16, 3 * 8 * 8
    fixed = 8 + tokens + 16 + tokens + image + 4 * image  # seed, given, mask, confidence, images
    fixed += tokens  # which row of step 0 every token reads
    per_image = fixed + halves * (4 + logits + features + 2 * tokens)
    per_step = halves * tokens + tokens + 4 * 4  # the trace, and parameters
    assert size(batch, steps) == 4 + batch * (per_image + steps * per_step)


# --- what is allocated


class _Noting(CpuDevice):
    """Notes what workspaces were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, BufferSpec]] = []

    def workspace(self, specs: Mapping[str, BufferSpec]) -> CpuWorkspace:
        self.asked.append(dict(specs))
        return super().workspace(specs)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("policy", [None, "policy"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_plan_allocates_what_was_said(
    generator: Generator, guided: bool, policy: str | None, reuse: bool
) -> None:
    _assert_allocated(generator, MaskedKey(2, 3, guided, policy, reuse))


@pytest.mark.parametrize("guided", [False, True])
def test_a_plan_for_text_allocates_what_was_said(text_generator: Generator, guided: bool) -> None:
    _assert_allocated(text_generator, MaskedKey(2, 3, guided, None))


def _assert_allocated(generator: Generator, key: MaskedKey) -> None:
    device = _Noting()
    said = masked_program(model_of(generator.bundle), key)
    known = masked_program(generator.model, key)  # engines know as much as graphs
    assert (known.buffers, known.ops) == (said.buffers, said.ops)
    plans = Plans(device, generator.engines, lambda _: known)
    plan = plans.get(key)
    assert device.asked[-1] == said.buffers
    arrays = {name: host_array(plan.workspace[name]) for name in said.buffers}
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in said.buffers.items()
    }
    assert said.bytes == sum(array.nbytes for array in arrays.values())
    assert all(math.prod(spec.shape) > 0 for spec in said.buffers.values())
    shared = _constants(said)
    assert bool(shared) == (key.guided and key.reuse)
    assert not shared or shared in device.asked
    plans.close()


def test_keys_are_equal_by_their_values_and_reuse_unless_told() -> None:
    key = MaskedKey(1, 2, guided=True, policy=None)
    assert key == MaskedKey(1, 2, guided=True, policy=None, reuse=True)
    assert hash(key) == hash(replace(key))
    assert key != replace(key, reuse=False)
    assert [replace(key, guided=each).rows for each in (True, False)] == [2, 1]
