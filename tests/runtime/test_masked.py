"""The decode loop against a plain one, and the passes it saves.

The plain loop below follows the official AdaNAT sampler: every step makes a conditional and an
unconditional pass at batch 1 with ONNX Runtime directly, the arithmetic is float64, and nothing
is reused. Covered: equal tokens for fixed schedules and the policy over step counts, guidance 0,
text conditions, the number and size of transformer passes, and what the trace must satisfy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.device import Buffer
from fewstep.runtime.device.cpu import CpuDevice, host_array
from fewstep.runtime.engine import Engine
from fewstep.runtime.engine.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.philox import uniforms
from fewstep.runtime.manifest import TensorInfo

_TOKENS, _CODES, _MASK, _NO_CLASS = 16, 24, 24, 5
_STEPS = (1, 2, 4, 8, 16)
_SEEDS = (0, 1, 2**40 + 7)
_CLASSES = (0, 3, 4)
_RATIO, _MASKING, _SAMPLING, _GUIDANCE = range(4)

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
        self, condition: npt.NDArray[Any], seed: int, steps: int, parameters: _Parameters | None
    ) -> Ids:
        """One image; ``parameters`` of a fixed schedule, or ``None`` for the policy."""
        tokens = np.full(_TOKENS, _MASK, np.int64)
        sampled = tokens
        for step in range(steps):
            logits, features = self._pass(tokens, condition)
            unguided, _ = self._pass(tokens, self.unconditional)
            if parameters is None:
                ratio, masking, sampling, guidance = self._act(features, step, steps)
            else:
                ratio, masking, sampling, guidance = parameters(step, steps)
            logits = logits + guidance * (logits - unguided)
            sampled, confidence = _sample(logits, tokens, seed, step, sampling, masking)
            k = min(math.floor(_TOKENS * ratio), _TOKENS - 1)
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
    transformer, policy = (_session(tiny_bundle / f"{name}.onnx") for name in _GRAPHS[:2])
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


# --- passes

_GRAPHS = ("transformer", "policy", "decoder")


@dataclass
class Counting:
    """An engine that notes the batch of every pass, and may spoil an output afterwards."""

    engine: Engine
    batches: list[int] = field(default_factory=list)
    spoil: Callable[[npt.NDArray[Any]], None] | None = None
    closed: int = 0

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        return self.engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        return self.engine.outputs

    def enqueue(self, bindings: Mapping[str, Buffer]) -> None:
        assert len({buffer.shape[0] for buffer in bindings.values()}) == 1
        self.batches.append(next(iter(bindings.values())).shape[0])
        self.engine.enqueue(bindings)
        if self.spoil is not None:
            self.spoil(host_array(bindings[next(iter(self.outputs))]))

    def close(self) -> None:
        self.closed += 1
        self.engine.close()


@pytest.fixture
def engines(tiny_bundle: Path) -> Iterator[dict[str, Counting]]:
    bundle = Bundle.read(tiny_bundle)
    counted = {
        name: Counting(OnnxRuntimeEngine(name, bundle.graph_path(name), info, threads=1))
        for name, info in bundle.manifest.graphs.items()
    }
    assert set(counted) == set(_GRAPHS)
    yield counted


def _open(tiny_bundle: Path, engines: Mapping[str, Engine], **options: Any) -> Generator:
    return Generator(Bundle.read(tiny_bundle), CpuDevice(), engines, **options)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_guided_passes(
    tiny_bundle: Path, engines: dict[str, Counting], steps: int, schedule: str
) -> None:
    with _open(tiny_bundle, engines) as generator:
        generator.generate(class_ids=[0, 1, 2], steps=steps, schedule=schedule)
        # One pass for the unconditional logits of the all-masked image, then T.
        assert engines["transformer"].batches == [1, 3, *[6] * (steps - 1)]
        assert engines["policy"].batches == ([3] * steps if schedule == "policy" else [])
        assert engines["decoder"].batches == [3]
        engines["transformer"].batches.clear()
        generator.generate(class_ids=[4, 4, 4], steps=steps, schedule=schedule, seed=9)
        generator.generate(class_ids=[1], steps=steps, schedule=schedule)
        assert engines["transformer"].batches == [
            *(3, *[6] * (steps - 1)),
            *(1, *[2] * (steps - 1)),
        ]


def test_unguided_passes_never_double_the_batch(
    tiny_bundle: Path, engines: dict[str, Counting]
) -> None:
    with _open(tiny_bundle, engines) as generator:
        generator.generate(class_ids=[0, 1], steps=4, guidance=0)
    assert engines["transformer"].batches == [2, 2, 2, 2]


def test_passes_without_reuse(tiny_bundle: Path, engines: dict[str, Counting]) -> None:
    with _open(tiny_bundle, engines, reuse_first=False) as generator:
        generator.generate(class_ids=[0, 1], steps=3)
    assert engines["transformer"].batches == [4, 4, 4]


def test_large_requests_are_cut_into_batches(
    tiny_bundle: Path, engines: dict[str, Counting]
) -> None:
    with _open(tiny_bundle, engines, max_batch=2) as generator:
        images = generator.generate(class_ids=[0, 1, 2, 3, 4], steps=2, guidance=0).images
    assert len(images) == 5
    assert engines["transformer"].batches == [2, 2, 2, 2, 1, 1]
    assert engines["decoder"].batches == [2, 2, 1]


def test_closing_releases_every_engine_once(
    tiny_bundle: Path, engines: dict[str, Counting]
) -> None:
    generator = _open(tiny_bundle, engines)
    generator.close()
    generator.close()
    assert [engine.closed for engine in engines.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("graph", "schedule"),
    [("transformer", "cosine"), ("transformer", "policy"), ("policy", "policy")],
)
@pytest.mark.parametrize("reuse_first", [True, False])
def test_nan_from_an_engine_is_reported_and_not_remembered(
    tiny_bundle: Path, engines: dict[str, Counting], graph: str, reuse_first: bool, schedule: str
) -> None:
    request: dict[str, Any] = {"class_ids": [0, 1], "steps": 3, "schedule": schedule}
    with _open(tiny_bundle, engines, reuse_first=reuse_first) as generator:
        expected = generator.generate(**request)
        engines[graph].spoil = lambda output: output.fill(np.nan)
        with np.errstate(invalid="ignore"), pytest.raises(EngineError, match="NaN"):
            generator.generate(**request)
        engines[graph].spoil = None
        assert (generator.generate(**request).tokens == expected.tokens).all()


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
