"""Parts of the GPU benchmark with real networks: PyTorch's engines in the loop, and PyTorch alone.

PyTorch and ``fewstep.export`` are imported only when such a part runs.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.gpu_loop import first_image, generate
from tests.benchmarks.gpu_run import Bench, LeftOut, Row, Tables, Times, in_turn

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.generator import Generator

if TYPE_CHECKING:
    from fewstep.export.masked import Models

_GPU = "cuda"
_SAMPLE = Path(__file__).parents[2] / "samples" / "fashion"
_STEPS, _SCHEDULE = 8, "cosine"
_BATCHES = (1, 8)
_STAGES = ("transformer", "sampling", "decoder")


def compare(bench: Bench, *, model: str, precision: str) -> Tables:
    """The loop with PyTorch's engines against the authors' procedure, on the same modules.

    Args:
        bench: what every part is given.
        model: ``sample`` or ``adanat-l``.
        precision: ``fp32`` or ``fp16``.

    Raises:
        LeftOut: PyTorch, or a GPU that it sees, is not here.
    """
    _require_torch(bench)
    models, bundle = _sample() if model == "sample" else _adanat_l()
    make = functools.partial(_open, bench, models, bundle, precision)
    opening = first_image(make, steps=_STEPS, schedule=_SCHEDULE)
    tables: Tables = {"first images": [opening], "per image": [], "eager / fewstep": []}
    for batch in _BATCHES:
        rows, ratio = _compared(bench, models, bundle, precision, batch)
        tables["per image"] += rows
        tables["eager / fewstep"].append(ratio)
    return tables


def _require_torch(bench: Bench) -> None:
    if bench.emulated:
        raise LeftOut("torch sees no GPU (emulated driver)")
    try:
        import torch
    except ImportError as error:
        raise LeftOut("torch is not here") from error
    if not torch.cuda.is_available():
        raise LeftOut("torch sees no GPU")
    try:
        import fewstep.export.demo  # noqa: F401
    except ImportError as error:
        raise LeftOut(f"fewstep.export does not import here: {error}") from error


def _sample() -> tuple[Models, Bundle]:
    """The trained Fashion sample, for fixed schedules."""
    from tests.cuda.torch_engine import described, load

    from fewstep.export.demo import sample_checkpoints
    from fewstep.export.masked import Models

    files = sample_checkpoints(_SAMPLE)
    loaded = load(files)
    models = Models(loaded.transformer, loaded.tokenizer)
    return models, described(models, files["config"])


def _adanat_l() -> tuple[Models, Bundle]:
    """The published sizes for ImageNet with random weights, made on the GPU."""
    import torch
    from tests.cuda.torch_engine import described

    from fewstep.export.masked import Models
    from fewstep.export.models import UViT, VQModel
    from fewstep.export.parts import part_of

    torch.manual_seed(0)
    with torch.device(_GPU):
        transformer = UViT(**part_of(UViT).sizes[0].arguments)
        tokenizer = VQModel(**part_of(VQModel).sizes[0].arguments)
    models = Models(transformer.eval(), tokenizer.eval())
    return models, described(models)


def _open(
    bench: Bench, models: Models, bundle: Bundle, precision: str, profile: bool = False
) -> Generator:
    from tests.cuda.torch_engine import open_generator

    device = CudaDevice(bench.cubin, profile=profile)
    return open_generator(models, bundle, device, precision=precision)


def _compared(
    bench: Bench, models: Models, bundle: Bundle, precision: str, batch: int
) -> tuple[list[Row], Row]:
    """Rows of the contenders, and how many times longer the eager one takes."""
    condition = bundle.manifest.model.condition
    assert isinstance(condition, ClassCondition)
    classes = [image % condition.num_classes for image in range(batch)]
    request = {"class_ids": classes, "steps": _STEPS, "schedule": _SCHEDULE}
    with contextlib.ExitStack() as stack:
        make = functools.partial(_open, bench, models, bundle, precision)
        whole, staged = (stack.enter_context(make(profile)) for profile in (False, True))
        runs: dict[str, Callable[[], Mapping[str, float]]] = {
            "fewstep": functools.partial(generate, whole, request),
            "staged": functools.partial(generate, staged, request),
            "eager": _Eager(models, bundle, classes),
        }
        taken = in_turn(runs, seconds=min(3.0, bench.left_s / 2), most=bench.runs(30))
    total = {name: Times([each["total"] for each in found]) for name, found in taken.items()}
    stages = {
        f"{stage}, median, ms": Times([each[stage] for each in taken["staged"]]).median / batch
        for stage in _STAGES
    }
    device = Times([each["device"] for each in taken["fewstep"]]).median / batch
    decoder = Times([each["decoder"] for each in taken["eager"]]).median / batch
    nothing: Row = dict.fromkeys(stages)
    rows = [
        _row("fewstep, one CUDA graph", batch, total["fewstep"])
        | {"on the GPU, median, ms": device}
        | stages,
        _row("PyTorch eager, the authors' passes", batch, total["eager"])
        | {"on the GPU, median, ms": None}
        | nothing
        | {"decoder, median, ms": decoder},
    ]
    ratio: Row = {
        "batch": batch,
        "of medians": total["eager"].median / total["fewstep"].median,
        "of minima": total["eager"].least / total["fewstep"].least,
    }
    return rows, ratio


def _row(name: str, batch: int, total: Times) -> Row:
    return {
        "what": name,
        "batch": batch,
        **total.row("in all", "ms", 1 / batch),
        "runs": len(total.values),
    }


class _Eager:
    """One batch by the authors' procedure, down to pixels on the host."""

    def __init__(self, models: Models, bundle: Bundle, classes: list[int]) -> None:
        import torch
        from tests.benchmarks.eager import EagerSampler, parameters

        model = bundle.manifest.model
        assert isinstance(model, MaskedModel)
        assert isinstance(model.condition, ClassCondition)
        self._parameters = parameters(model, _SCHEDULE, _STEPS)
        self._classes = torch.tensor(classes, device=_GPU)
        nothing = model.condition.unconditional_id
        assert nothing is not None
        self._sampler = EagerSampler(models.transformer, models.tokenizer, nothing)
        event: Any = torch.cuda.Event  # untyped
        self._before, self._after = event(enable_timing=True), event(enable_timing=True)

    def __call__(self) -> Mapping[str, float]:
        """Milliseconds in all, and between events around the decoder."""
        started = time.perf_counter()
        tokens = self._sampler.decide(self._classes, self._parameters)
        self._before.record()
        images = self._sampler.decode(tokens)
        self._after.record()
        pixels: Any = images.float().mul(255).round().byte().permute(0, 2, 3, 1)
        pixels.cpu()  # waits
        total = (time.perf_counter() - started) * 1e3
        return {"total": total, "decoder": self._before.elapsed_time(self._after)}
