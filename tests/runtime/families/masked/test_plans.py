"""The plans that a generator keeps for masked requests, and the constant that they share.

What plans are kept and when they go is in ``tests/runtime/test_memory.py``, for programs of any
kind.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.ledger import Ledger

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Buffer
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import EngineError
from fewstep.runtime.families.masked.program import MaskedKey, masked_program
from fewstep.runtime.families.masked.schedule import Schedule
from fewstep.runtime.generator import Generator
from fewstep.runtime.memory import Plans
from fewstep.runtime.observe import observe


def _open(generator: Generator, device: CpuDevice, **engines: Any) -> Plans:
    """Plans with the generator's engines, or others, on another device."""
    make: Any = functools.partial(generator.family.program, generator.model)
    return Plans(device, {**generator.engines, **engines}, make)


@pytest.mark.parametrize(
    "other",
    [
        MaskedKey(3, 2, guided=True, policy=None),
        MaskedKey(2, 3, guided=True, policy=None),
        MaskedKey(2, 2, guided=False, policy=None),
        MaskedKey(2, 2, guided=True, policy="policy"),
        MaskedKey(2, 2, guided=True, policy=None, reuse=False),
    ],
)
def test_every_part_of_the_key_makes_another_plan(generator: Generator, other: MaskedKey) -> None:
    plans = _open(generator, Ledger())
    key = MaskedKey(2, 2, guided=True, policy=None)
    plan = plans.get(key)
    assert plans.get(other) is not plan
    assert plans.get(replace(key)) is plan
    plans.close()


def test_seeds_and_conditions_and_parameters_need_no_other_plan(tiny_bundle: Path) -> None:
    with _generator(tiny_bundle, Ledger()) as generator:
        device = generator.device
        assert isinstance(device, Ledger)
        generator.generate(class_ids=[0, 1], steps=2, guidance=1)
        asked = device.asked
        request: dict[str, Any] = {"class_ids": [3, 2], "seed": 2**40, "steps": 2}
        generator.generate(**request, guidance=(2, 5), sampling_temperature=0.5)
        generator.generate(**request, schedule="linear", masking_temperature=1)
        assert device.asked == asked


def _generator(folder: Path, device: CpuDevice, **options: Any) -> Generator:
    bundle = Bundle.read(folder)
    engines = {
        name: OnnxRuntimeEngine(name, bundle.graph_path(name), info, threads=1)
        for name, info in bundle.manifest.graphs.items()
    }
    return Generator(bundle, device, engines, **options)


def test_a_closed_generator_has_nothing_open(tiny_bundle: Path) -> None:
    device = Ledger()
    with _generator(tiny_bundle, device, max_batch=2, max_plan_bytes=1) as generator:
        generator.generate(class_ids=[0, 1, 2], steps=2)
        (plan,) = (entry for entry in device.open if "sampled" in entry.names)
        assert len(plan.read("sampled")[0]) == 1
        generator.generate(class_ids=[0], steps=3, schedule="policy")
        # Step 0 by class, what computes it, the unconditional logits, and the last plan.
        assert len(device.open) == 4
    assert device.nothing_open


# --- the unconditional logits


def test_the_constant_is_what_the_transformer_makes_of_no_token(generator: Generator) -> None:
    """Whatever runs it: here the program, and the engine on its own."""
    device = Ledger()
    plans = _open(generator, device)
    plans.get(MaskedKey(1, 1, guided=True, policy=None))
    (kept,) = (entry for entry in device.open if "unconditional_logits" in entry.names)
    program = masked_program(generator.model, MaskedKey(1, 1, True, None, reuse=False))
    first = next(observe(program, CpuDevice(), generator.engines, {"condition": 5}))
    assert (first.inputs["tokens"] == 24).all()
    expected = first.outputs["logits"][:1]
    np.testing.assert_allclose(kept.read("unconditional_logits"), expected, rtol=1e-5, atol=1e-5)
    plans.close()


class _Broken:
    """An engine that fails to run once."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.broken = engine, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        bound: BoundEngine = self._engine.bind(bindings)

        def run() -> None:
            if self.broken:
                self.broken = False
                raise EngineError("broken")
            bound.run()

        return replace(bound, run=run)


def test_a_first_pass_that_fails_leaves_nothing_open_and_is_made_again(
    generator: Generator,
) -> None:
    device, key = Ledger(), MaskedKey(1, 2, guided=True, policy=None)
    plans = _open(generator, device, transformer=_Broken(generator.engines["transformer"]))
    with pytest.raises(EngineError, match="broken"):
        plans.get(key)
    assert device.nothing_open
    parameters = Schedule().parameters(2, 16)[:, None]
    found = plans.run(key, {"condition": [0, 5], "seeds": 0, "parameters": parameters})
    expected = generator.generate(class_ids=[0], steps=2, guidance=(0, 3)).tokens
    assert (found["sampled"][-1] == expected).all()
    plans.close()
