"""Raster decoding: N passes, each deciding one position, on the same engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from fewstep.runtime.devices import Buffer
from fewstep.runtime.devices.cpu import host_array
from fewstep.runtime.engines import BoundEngine, Engine, run_once
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import ClassCondition, TensorInfo
from fewstep.runtime.raster import decode_in_raster_order


class _Recorder:
    """Passes through to an engine and keeps the tokens of every pass."""

    capturable = True
    warm_up = 1

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seen: list[np.ndarray[tuple[int, ...], np.dtype[np.int32]]] = []

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        return self._engine.outputs

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        bound = self._engine.bind(bindings)

        def run() -> None:
            self.seen.append(host_array(bindings["tokens"]).copy())
            bound.run()

        return replace(bound, run=run)

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_pass_n_knows_exactly_the_first_n_positions(generator: Generator, guidance: float) -> None:
    model = generator.bundle.manifest.model
    recorder = _Recorder(generator.engines["transformer"])
    engines: dict[str, Engine] = {**generator.engines, "transformer": recorder}
    inner = Generator(generator.bundle, generator.device, engines)
    tokens, timings = decode_in_raster_order(inner, class_ids=[1, 4], seed=3, guidance=guidance)
    assert len(recorder.seen) == model.num_tokens
    for position, seen in enumerate(recorder.seen):
        assert seen.shape[0] == (4 if guidance else 2)
        assert (seen[:, position:] == model.mask_token).all()
        np.testing.assert_array_equal(seen[:2, :position], tokens[:, :position])
        np.testing.assert_array_equal(seen[-2:, :position], tokens[:, :position])
    assert tokens.shape == (2, model.num_tokens)
    assert ((tokens >= 0) & (tokens < model.codebook_size)).all()
    assert timings["total"] > timings["transformer"] > 0


def test_seed_decides(generator: Generator) -> None:
    first, _ = decode_in_raster_order(generator, class_ids=[0], seed=1)
    again, _ = decode_in_raster_order(generator, class_ids=[0], seed=1)
    other, _ = decode_in_raster_order(generator, class_ids=[0], seed=2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_every_pass_is_guided_by_its_own_unconditional_half(generator: Generator) -> None:
    """At a huge guidance scale only the difference of the halves counts: redo it by hand."""
    model = generator.bundle.manifest.model
    found, _ = decode_in_raster_order(generator, class_ids=[2], seed=4, guidance=1e6)
    assert isinstance(model.condition, ClassCondition)
    tokens = np.full((2, model.num_tokens), model.mask_token, np.int32)
    condition = np.array([2, model.condition.unconditional_id], np.int32)
    for position in range(model.num_tokens):
        inputs = {"tokens": tokens, "condition": condition}
        logits = run_once(generator.device, generator.engines["transformer"], inputs)["logits"]
        difference = (logits[0] - logits[1])[position]
        tokens[:, position] = difference.argmax()
    np.testing.assert_array_equal(found[0], tokens[0])
