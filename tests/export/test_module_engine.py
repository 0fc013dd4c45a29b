"""The PyTorch engine of the GPU tests and the benchmark, on the CPU device.

Covered: whole generations are those of ONNX Runtime on the exported bundle; golden rollouts in fp32
and fp16; buffers in place and types; what is refused. What only a GPU can show is in
``tests/cuda/test_torch_engine.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.cuda.torch_engine import ModuleEngine, described, load, open_generator
from tests.cuda.unexported import unexported
from tests.masked import masked_model
from torch import Tensor, nn

from fewstep.export.demo import sample_checkpoints
from fewstep.export.masked import Models
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Buffer
from fewstep.runtime.devices.cpu import CpuBuffer, CpuDevice
from fewstep.runtime.engines import Engine
from fewstep.runtime.errors import EngineError, OutOfMemoryError
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import GraphInfo, TensorInfo
from fewstep.runtime.verify import verify

_SAMPLE = Path(__file__).parents[2] / "samples" / "fashion"
_IDS = TensorInfo(dtype="int32", shape=("batch", 3))
_VECTOR = TensorInfo(dtype="float32", shape=("batch", 3))
_INFO = GraphInfo(
    file="x.onnx", inputs={"ids": _IDS, "x": _VECTOR}, outputs={"difference": _VECTOR}
)


class Difference(nn.Module):
    """Keeps what it is given."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.failure, self.seen = failure, dict[str, Tensor]()

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        if self.failure is not None:
            raise self.failure
        self.seen = {"ids": ids, "x": x}
        return self.scale * x - ids


def _bindings(batch: int = 2) -> dict[str, Buffer]:
    ids = np.arange(3 * batch, dtype=np.int32).reshape(batch, 3)
    x = np.linspace(-1, 1, 3 * batch, dtype=np.float32).reshape(batch, 3)
    arrays = {"ids": ids, "x": x, "difference": np.full((batch, 3), np.nan, np.float32)}
    return {name: CpuBuffer(array) for name, array in arrays.items()}


def _array(buffer: Buffer) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    assert isinstance(buffer, CpuBuffer)
    return buffer.array


# --- whole generations


@pytest.fixture(scope="module")
def make(tiny_bundle: Path, tiny_checkpoints: dict[str, Any]) -> Callable[[str], Generator]:
    """Opens a generator of the tiny bundle's modules in a precision."""
    return lambda precision: open_generator(
        load(tiny_checkpoints), Bundle.read(tiny_bundle), CpuDevice(), precision=precision
    )


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_images_are_those_of_onnxruntime(
    make: Callable[[str], Generator], tiny_bundle: Path, schedule: str
) -> None:
    with make("fp32") as generator, Generator.open(tiny_bundle, device="cpu") as expected:
        for seed, steps in ((0, 1), (7, 4)):
            classes = [0, 4, 2]
            found, wanted = (
                each.generate(class_ids=classes, seed=seed, steps=steps, schedule=schedule)
                for each in (generator, expected)
            )
            np.testing.assert_array_equal(found.trace.tokens, wanted.trace.tokens)
            assert np.abs(found.images.astype(int) - wanted.images).max() <= 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_golden_rollouts_pass(make: Callable[[str], Generator], precision: str) -> None:
    with make(precision) as generator:
        report = verify(generator)
    assert report.passed, report


def test_fp16_is_another_arithmetic(make: Callable[[str], Generator]) -> None:
    found = []
    for precision in ("fp32", "fp16"):
        with make(precision) as generator:
            assert generator.backend == "pytorch"
            assert generator.precision == precision
            report = verify(generator)
        found.append({(c.graph, c.metric): c.value for c in report.checks if c.rollout == "cosine"})
    error = ("transformer", "logit_error")
    assert found[1][error] > 10 * found[0][error]


@pytest.mark.parametrize("with_policy", [False, True])
def test_models_need_no_exported_bundle(
    tiny_checkpoints: dict[str, Any], with_policy: bool
) -> None:
    models = load(tiny_checkpoints)
    if not with_policy:
        models = Models(models.transformer, models.tokenizer)
    with open_generator(models, described(models), CpuDevice()) as generator:
        schedule = "policy" if with_policy else "cosine"
        result = generator.generate(class_ids=[0, 3], steps=3, schedule=schedule)
    assert result.images.shape == (2, 8, 8, 3)
    assert ("features" in generator.engines["transformer"].outputs) == with_policy


def test_a_description_has_the_graphs_of_the_exported_bundle(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    exported, model = bundle.manifest, masked_model(bundle)
    made = unexported(model).manifest
    assert made.model == model
    assert made.graphs.keys() == exported.graphs.keys()
    for name, info in exported.graphs.items():
        assert made.graphs[name].tensors == info.tensors
        for side in ("inputs", "outputs"):  # the module takes them by their order
            assert list(getattr(made.graphs[name], side)) == list(getattr(info, side))


def test_the_sample_is_described_as_it_is_exported() -> None:
    files = sample_checkpoints(_SAMPLE)
    model = masked_model(described(load(files), files["config"]))
    assert model.grid == (8, 8)
    assert {"policy", "policy-4-steps", "policy-8-steps"} <= model.policies.keys()


# --- bindings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_buffers_keep_their_types_and_floats_are_cast(dtype: torch.dtype) -> None:
    module, bindings = Difference(), _bindings()
    engine: Engine = ModuleEngine("difference", module, _INFO, dtype=dtype)
    engine.bind(bindings).run()
    x, ids = _array(bindings["x"]), _array(bindings["ids"])
    np.testing.assert_allclose(_array(bindings["difference"]), 2 * x - ids, atol=5e-3)
    assert _array(bindings["difference"]).dtype == np.float32
    assert module.seen["ids"].dtype == torch.int32
    assert module.seen["x"].dtype == dtype
    assert not module.training


def test_inputs_and_outputs_are_read_and_written_in_place() -> None:
    module, bindings = Difference(), _bindings()
    bound = ModuleEngine("difference", module, _INFO).bind(bindings)
    bound.run()
    assert module.seen["x"].data_ptr() == bindings["x"].pointer
    assert module.seen["ids"].data_ptr() == bindings["ids"].pointer
    _array(bindings["x"])[:] = 5
    bound.run()
    np.testing.assert_array_equal(
        _array(bindings["difference"]), 10 - _array(bindings["ids"]).astype(np.float32)
    )


def test_a_missing_buffer_or_one_of_another_type_is_refused() -> None:
    engine, bindings = ModuleEngine("difference", Difference(), _INFO), _bindings()
    absent = {name: buffer for name, buffer in bindings.items() if name != "ids"}
    with pytest.raises(EngineError, match="no buffer bound to ids"):
        engine.bind(absent)
    wide = CpuBuffer(np.zeros((2, 3), np.int64))
    with pytest.raises(EngineError, match="expected int32"):
        engine.bind(bindings | {"ids": wide})


def test_a_closed_engine_is_refused() -> None:
    engine = ModuleEngine("difference", Difference(), _INFO)
    bound = engine.bind(_bindings())
    for _ in range(2):
        engine.close()
    with pytest.raises(EngineError, match="'difference' is closed"):
        bound.run()


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (RuntimeError("no such kernel"), EngineError),
        (torch.OutOfMemoryError("none left"), OutOfMemoryError),
    ],
)
def test_failures_are_those_of_an_engine(failure: Exception, kind: type[Exception]) -> None:
    bound = ModuleEngine("difference", Difference(failure), _INFO).bind(_bindings())
    with pytest.raises(kind, match=f"'difference' .*{failure}"):
        bound.run()
