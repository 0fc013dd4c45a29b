"""The decode loop against a plain one, for new images and for edits.

The plain loop below follows the official AdaNAT sampler: every step makes a conditional and an
unconditional pass at batch 1 with ONNX Runtime directly, the arithmetic is float64, and nothing
is reused. Covered: equal tokens for fixed schedules and the policy over step counts, guidance 0,
text conditions and tokens kept from a given image, and what the trace must satisfy. The passes
that the loop saves are counted in ``test_masked_passes.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.families.masked.request import MaskedRequest
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.philox import uniforms
from fewstep.runtime.result import Result

_TOKENS, _CODES, _MASK, _NO_CLASS = 16, 24, 24, 5
_STEPS = (1, 2, 4, 8, 16)
_SEEDS = (0, 1, 2**40 + 7)
_CLASSES = (0, 3, 4)
_RATIO, _MASKING, _SAMPLING, _GUIDANCE = range(4)

Given = npt.NDArray[np.int32]
Wide = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


# --- the plain loop


@dataclass(frozen=True)
class Plain:
    """ONNX Runtime sessions of a bundle and the condition of its unconditional half."""

    transformer: onnxruntime.InferenceSession
    policy: onnxruntime.InferenceSession | None
    condition_name: str
    unconditional: npt.NDArray[Any]

    def decode(
        self,
        condition: npt.NDArray[Any],
        seed: int,
        steps: int,
        parameters: _Parameters | None,
        start: Ids | None = None,
    ) -> Ids:
        """One image; ``parameters`` of a fixed schedule, or ``None`` for the policy.

        It starts from all tokens masked, or from the tokens ``start [N]``.
        """
        tokens = np.full(_TOKENS, _MASK, np.int64) if start is None else start
        sampled, free = tokens, int((tokens == _MASK).sum())
        for step in range(steps):
            logits, features = self._pass(tokens, condition)
            unguided, _ = self._pass(tokens, self.unconditional)
            if parameters is None:
                ratio, masking, sampling, guidance = self._act(features, step, steps)
            else:
                ratio, masking, sampling, guidance = parameters(step, steps)
            logits = logits + guidance * (logits - unguided)
            sampled, confidence = _sample(logits, tokens, seed, step, sampling, masking)
            k = max(0, min(math.floor(free * ratio), free - 1))
            tokens = np.where(confidence < np.sort(confidence)[k], _MASK, sampled)
        return sampled

    def _pass(self, tokens: Ids, condition: npt.NDArray[Any]) -> tuple[Wide, npt.NDArray[Any]]:
        fed = {"tokens": tokens[None].astype(np.int32), self.condition_name: condition[None]}
        logits, *features = self.transformer.run(None, fed)
        return logits[0].astype(np.float64), features[0] if features else logits

    def _act(self, features: npt.NDArray[Any], step: int, steps: int) -> tuple[float, ...]:
        """Steps 1–4 of the official policy code, residuals included."""
        assert self.policy is not None
        (action,) = self.policy.run(
            ["action"], {"features": features, "step": np.array([step], np.int32)}
        )
        r = (step + 1 - 1e-3) / steps
        heuristic = math.cos(math.pi * r / 2)
        raw = [float(value) for value in action[0]]
        raw[0] += math.log(heuristic / (1 - heuristic))
        for i, value in enumerate((1 - r, 1.0, (step + 1e-3) / steps), start=1):
            raw[i] += math.log(math.exp(value) - 1)
        return 1 / (1 + math.exp(-raw[0])), *(math.log(1 + math.exp(value)) for value in raw[1:])


_Parameters = Callable[[int, int], tuple[float, float, float, float]]


def _sample(
    logits: Wide, tokens: Ids, seed: int, step: int, temperature: float, masking: float
) -> tuple[Ids, Wide]:
    sampled, confidence = tokens.copy(), np.full(_TOKENS, math.inf)
    for n in np.flatnonzero(tokens == _MASK):
        choose, noise = (float(uniform) for uniform in uniforms(np.uint64(seed), step, int(n)))
        ends = np.cumsum(_softmax(logits[n] / temperature))
        sampled[n] = np.searchsorted(ends, choose, side="right")
        log_probability = math.log(_softmax(logits[n])[sampled[n]])
        confidence[n] = log_probability - masking * math.log(-math.log(noise))
    return sampled, confidence


def _softmax(logits: Wide) -> Wide:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _cosine(guidance: float, temperature: float = 1.0) -> _Parameters:
    """The cosine schedule with guidance ramping up to ``guidance`` and Gumbel noise to nothing."""

    def parameters(step: int, steps: int) -> tuple[float, float, float, float]:
        r = (step + 1) / steps
        return max(0.0, math.cos(math.pi * r / 2)), 4.5 * (1 - r), temperature, guidance * r

    return parameters


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> Plain:
    transformer, policy = (
        _session(tiny_bundle / f"{name}.onnx") for name in ("transformer", "policy")
    )
    return Plain(transformer, policy, "condition", np.array(_NO_CLASS, np.int32))


# --- equal tokens


@pytest.mark.parametrize("steps", _STEPS)
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_fixed_schedule_gives_the_tokens_of_the_plain_loop(
    generator: Generator, plain: Plain, steps: int, guidance: float
) -> None:
    found = generator.generate(
        class_ids=_CLASSES, seed=_SEEDS, steps=steps, schedule="cosine", guidance=(0, guidance)
    )
    _assert_plain(found.tokens, plain, steps, _cosine(guidance))


@pytest.mark.parametrize("steps", _STEPS)
def test_policy_gives_the_tokens_of_the_plain_loop(
    generator: Generator, plain: Plain, steps: int
) -> None:
    found = generator.generate(class_ids=_CLASSES, seed=_SEEDS, steps=steps, schedule="policy")
    _assert_plain(found.tokens, plain, steps, None)


def test_sampling_temperature_gives_the_tokens_of_the_plain_loop(
    generator: Generator, plain: Plain
) -> None:
    found = generator.generate(
        class_ids=_CLASSES, seed=_SEEDS, steps=6, guidance=(0, 2), sampling_temperature=0.6
    )
    _assert_plain(found.tokens, plain, 6, _cosine(2.0, temperature=0.6))


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_text_gives_the_tokens_of_the_plain_loop(
    text_generator: Generator, tiny_text_bundle: Path, guidance: float
) -> None:
    empty = Bundle.read(tiny_text_bundle).arrays("unconditional.npz")["text"]
    loop = Plain(_session(tiny_text_bundle / "transformer.onnx"), None, "text", empty)
    text = np.random.default_rng(8).standard_normal((3, 3, 12), np.float32)
    found = text_generator.generate(
        text=text, seed=_SEEDS, steps=4, schedule="cosine", guidance=(0, guidance)
    )
    for i, seed in enumerate(_SEEDS):
        expected = loop.decode(text[i], seed, 4, _cosine(guidance))
        assert found.tokens[i].tolist() == expected.tolist()


def test_condition_guidance_and_policy_all_matter(generator: Generator) -> None:
    """Otherwise the comparisons above would hold for a model that ignores them."""
    requests: list[dict[str, Any]] = [
        {"class_ids": [0], "guidance": 0},
        {"class_ids": [1], "guidance": 0},
        {"class_ids": [0], "guidance": 5},
        {"class_ids": [0], "schedule": "policy"},
    ]
    rollouts = {generator.generate(**r, steps=4, seed=3).tokens.tobytes() for r in requests}
    assert len(rollouts) == len(requests)


def _assert_plain(
    found: npt.NDArray[np.int32], plain: Plain, steps: int, parameters: _Parameters | None
) -> None:
    assert found.shape == (len(_SEEDS), _TOKENS)
    for i, (class_id, seed) in enumerate(zip(_CLASSES, _SEEDS, strict=True)):
        expected = plain.decode(np.array(class_id, np.int32), seed, steps, parameters)
        assert found[i].tolist() == expected.tolist(), f"class {class_id}, seed {seed}"


# --- edits

# What is generated again: a corner, one position, all but one, nothing, everything.
_MASKS = {
    "corner": np.isin(np.arange(_TOKENS), [0, 1, 4, 5]),
    "one": np.arange(_TOKENS) == 7,
    "all but one": np.arange(_TOKENS) != 15,
    "nothing": np.zeros(_TOKENS, np.bool_),
    "everything": np.ones(_TOKENS, np.bool_),
}


def _given(seed: int = 0) -> Given:
    return np.random.default_rng(seed).integers(0, _CODES, (len(_SEEDS), _TOKENS)).astype(np.int32)


def _edit(
    generator: Generator,
    steps: int,
    parameters: _Parameters | None,
    given: Array | None = None,
    mask: Array | None = None,
    *,
    guided: bool = True,
) -> Result:
    """One run on ``_CLASSES`` and ``_SEEDS``; without parameters the policy decides."""
    fixed = None
    if parameters is not None:
        fixed = np.array([parameters(step, steps) for step in range(steps)], np.float32)
    request = MaskedRequest(
        condition=np.array(_CLASSES, np.int32),
        seeds=np.array(_SEEDS, np.uint64),
        steps=steps,
        parameters=fixed,
        guided=guided,
        policy="policy" if parameters is None else None,
        given=given,
        mask=mask,
    )
    return generator.run(request)


@pytest.mark.parametrize("which", _MASKS)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("schedule", ["unguided", "guided", "policy"])
def test_an_edit_gives_the_tokens_of_the_plain_loop(
    generator: Generator, plain: Plain, schedule: str, steps: int, which: str
) -> None:
    given, guided = _given(), schedule != "unguided"
    mask = np.stack([_MASKS[which], np.roll(_MASKS[which], 3), ~_MASKS[which]])
    parameters = None if schedule == "policy" else _cosine(3.0 * guided)
    found = _edit(generator, steps, parameters, given, mask, guided=guided)
    start = np.where(mask, _MASK, given)
    assert (found.trace.tokens[0] == start).all()
    for i, (class_id, seed) in enumerate(zip(_CLASSES, _SEEDS, strict=True)):
        condition, begin = np.array(class_id, np.int32), start[i].astype(np.int64)
        expected = plain.decode(condition, seed, steps, parameters, begin)
        assert found.tokens[i].tolist() == expected.tolist()


@settings(max_examples=25)
@drawn(
    mask=hnp.arrays(np.uint8, (len(_SEEDS), _TOKENS), elements=st.sampled_from([0, 1, 200])),
    guided=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_kept_tokens_stay_through_every_step(
    generator: Generator, mask: npt.NDArray[np.uint8], guided: bool, seed: int
) -> None:
    given, kept = _given(seed), mask == 0
    parameters = _cosine(2.0 * guided, temperature=1.5)
    trace = _edit(generator, 4, parameters, given, mask, guided=guided).trace
    for tokens in (*trace.tokens, *trace.sampled):
        assert (tokens[kept] == given[kept]).all()
    assert (trace.tokens[0][~kept] == _MASK).all()
    assert ((trace.sampled >= 0) & (trace.sampled < _CODES)).all()
    assert (trace.tokens[-1] != _MASK).all()  # the last ratio is 0
    plan = generator.plans.get(MaskedKey(len(_SEEDS), 4, guided, None, reuse=False))
    halves = plan.workspace.read("tokens").reshape(5, -1, *given.shape)
    assert halves.shape[1] == 1 + guided
    assert (halves == trace.tokens[:, None]).all()


def test_the_image_of_an_edit_is_decoded_from_all_its_tokens(
    generator: Generator, tiny_bundle: Path
) -> None:
    mask = np.broadcast_to(_MASKS["corner"], (len(_SEEDS), _TOKENS))
    found = _edit(generator, 2, _cosine(2.0), _given(), mask)
    decoder = _session(tiny_bundle / "decoder.onnx")
    (image,) = decoder.run(["image"], {"tokens": found.tokens})
    expected = np.round(np.clip(image, 0, 1) * 255).transpose(0, 2, 3, 1)
    assert np.abs(found.images - expected).max() <= 1


def test_an_edit_leaves_nothing_behind_in_its_plan(generator: Generator) -> None:
    mask = np.tile(_MASKS["one"], (len(_SEEDS), 1))
    everything = np.ones_like(mask)
    before = _edit(generator, 3, _cosine(3.0), _given(), everything)
    edited = _edit(generator, 3, _cosine(3.0), _given(), mask)
    after = _edit(generator, 3, _cosine(3.0), _given(1), everything)
    assert (edited.tokens != before.tokens).any()
    assert (after.trace.tokens == before.trace.tokens).all()
    assert (after.tokens == before.tokens).all()


def test_nothing_given_and_all_given_masked_are_the_same(generator: Generator) -> None:
    everything = np.ones((len(_SEEDS), _TOKENS), np.bool_)
    fresh = _edit(generator, 4, _cosine(3.0))
    masked = _edit(generator, 4, _cosine(3.0), np.full_like(_given(), -1), everything)
    new = generator.generate(class_ids=_CLASSES, seed=_SEEDS, steps=4, guidance=(0, 3))
    assert (masked.trace.tokens == fresh.trace.tokens).all()
    assert (masked.tokens == new.tokens).all()


def test_an_edit_is_the_same_in_batches_of_any_size(
    generator: Generator, tiny_bundle: Path
) -> None:
    """Every image has tokens of its own to keep."""
    edit = {"given": _given(), "mask": np.stack([_MASKS["corner"], _MASKS["one"], ~_MASKS["one"]])}
    request = generator.request(class_ids=_CLASSES, seed=_SEEDS, steps=3, edit=edit)
    expected = generator.run(request)
    for max_batch in (1, 2):
        with Generator.open(tiny_bundle, threads=1, max_batch=max_batch) as other:
            assert (other.run(request).trace.tokens == expected.trace.tokens).all()


# --- the trace


@pytest.mark.parametrize("schedule", ["cosine", "linear", "square-root", "policy"])
@pytest.mark.parametrize("steps", [1, 3, 8, 16])
def test_trace_tells_how_the_tokens_were_decided(
    generator: Generator, schedule: str, steps: int
) -> None:
    result = generator.generate(class_ids=[0, 2], seed=5, steps=steps, schedule=schedule)
    trace = result.trace
    assert trace.tokens.shape == (steps + 1, 2, _TOKENS)
    assert trace.sampled.shape == (steps, 2, _TOKENS)
    assert trace.parameters.shape == (steps, 2, 4)
    assert trace.mask_token == _MASK
    assert (trace.tokens[0] == _MASK).all()
    assert (result.tokens == trace.sampled[-1]).all()
    assert ((trace.sampled >= 0) & (trace.sampled < _CODES)).all()
    for step in range(steps):
        before, after = trace.tokens[step], trace.tokens[step + 1]
        known = before != _MASK
        assert (after[known] == before[known]).all()
        assert (trace.sampled[step][known] == before[known]).all()
        kept = after != _MASK
        assert (after[kept] == trace.sampled[step][kept]).all()


def test_masked_counts_follow_the_schedule(generator: Generator) -> None:
    trace = generator.generate(class_ids=[0, 1, 2], steps=8, schedule="cosine").trace
    masked = (trace.tokens[1:] == _MASK).sum(axis=2)
    expected = [math.floor(_TOKENS * math.cos(math.pi * (t + 1) / 16)) for t in range(8)]
    assert masked.T.tolist() == [expected] * 3


def test_policy_decides_for_every_image_and_step(generator: Generator) -> None:
    parameters = generator.generate(class_ids=[0, 1], steps=4, schedule="policy").trace.parameters
    assert ((parameters[..., _RATIO] >= 0) & (parameters[..., _RATIO] <= 1)).all()
    assert (parameters[..., _MASKING:] >= 0).all()
    assert (parameters[1, 0] != parameters[1, 1]).any()
    assert (parameters[0, 0] != parameters[1, 0]).any()


def test_fixed_parameters_are_the_same_for_every_image(generator: Generator) -> None:
    parameters = generator.generate(
        class_ids=[0, 1], steps=4, guidance=(1, 2), sampling_temperature=0.5
    ).trace.parameters
    assert (parameters[:, 0] == parameters[:, 1]).all()
    assert (parameters[..., _SAMPLING] == 0.5).all()
    assert parameters[:, 0, _GUIDANCE].tolist() == [1.25, 1.5, 1.75, 2.0]
