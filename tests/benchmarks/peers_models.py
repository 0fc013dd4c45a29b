"""Bundles that ``peers.py`` measures, and what its contenders have to know of each.

sample     the trained sample of this repository, 3.4 M parameters, 64 tokens of 512 codes
8m         random weights: 8.3 M parameters, 256 tokens of 1024 codes, the published VQGAN
adanat-l   random weights: AdaNAT-L, 24 layers of width 768, with the same VQGAN
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.families.masked.request import schedule_of
from fewstep.runtime.families.masked.schedule import Schedule

SAMPLE = Path(__file__).parents[2] / "samples" / "fashion"
MODELS = ("sample", "8m", "adanat-l")
_STEPS, _POLICY_STEPS = 8, 4
_FEW = ("--rollouts", "2", "--held-out", "1", "--steps", "2")
_GRAPHS = ("--graph", "transformer", "--graph", "decoder")
_CLASS = 3


@dataclass(frozen=True)
class Task:
    """One way to make an image.

    ``settings``: of fewstep's request. ``parameters``: mask ratio, masking temperature, sampling
    temperature and guidance of every step; with a ``policy``, the name of its graph, what is added
    to its actions instead. ``weights``: of the policy.
    """

    settings: dict[str, Any]
    parameters: list[list[float]]
    policy: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Prepared:
    """All that a contender needs, as plain data.

    ``checkpoints``: files by part, with ``config``. ``graphs``: ONNX files by precision and name.
    """

    name: str
    bundle: str
    checkpoints: dict[str, str]
    graphs: dict[str, dict[str, str]]
    tasks: dict[str, Task]
    tokens: int
    codes: int
    class_id: int
    unconditional_id: int
    image_size: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def prepared(name: str, folder: Path) -> Prepared:
    """A model's bundle with int8 graphs; what is missing is made, which takes minutes."""
    own = folder / name
    own.mkdir(parents=True, exist_ok=True)
    checkpoints, bundle = _exported(name, own)
    if "int8" not in bundle.precisions:
        few = () if name == "sample" else _FEW
        command = ("calibrate", "quantize", str(bundle.path), *_GRAPHS, *few)
        subprocess.run([sys.executable, "-m", "fewstep", *command], check=True)
        bundle = Bundle.read(bundle.path)
    model = bundle.manifest.model
    assert isinstance(model, MaskedModel)
    assert isinstance(model.condition, ClassCondition)
    unconditional = model.condition.unconditional_id
    assert unconditional is not None
    return Prepared(
        name=name,
        bundle=str(bundle.path),
        checkpoints={part: str(path) for part, path in checkpoints.items()},
        graphs={each: _graphs(bundle, each) for each in ("fp32", "int8")},
        tasks=_tasks(model, checkpoints),
        tokens=model.num_tokens,
        codes=model.codebook_size,
        class_id=_CLASS,
        unconditional_id=unconditional,
        image_size=model.image_size,
    )


def _exported(name: str, folder: Path) -> tuple[dict[str, Path], Bundle]:
    """Checkpoints by part, with ``config``, and the bundle."""
    path = folder / "bundle"
    if name == "sample":
        if not path.exists():
            from fewstep.export.demo import sample_checkpoints
            from fewstep.export.flow import export

            export("adanat", sample_checkpoints(SAMPLE), path, command="benchmark")
        weights = SAMPLE / "weights"
        parts = ("transformer", "tokenizer", "policy-4-steps")
        checkpoints = {part: weights / f"{part}.safetensors" for part in parts}
        return {**checkpoints, "config": SAMPLE / "config.json"}, Bundle.read(path)
    if not path.exists():
        from tests.benchmarks import measure

        measure.export(name, folder)
    parts = ("transformer", "tokenizer", "policy")
    checkpoints = {part: folder / f"{part}.safetensors" for part in parts}
    return {**checkpoints, "config": folder / "config.json"}, Bundle.read(path)


def _graphs(bundle: Bundle, precision: str) -> dict[str, str]:
    return {name: str(bundle.graph_path(name, precision)) for name in bundle.manifest.graphs}


def _tasks(model: MaskedModel, checkpoints: dict[str, Path]) -> dict[str, Task]:
    """8 steps of the bundle's schedule, and 4 by the policy whose weights are there."""
    chosen = model.defaults.model_copy(update={"steps": _STEPS})
    schedule = schedule_of(model, chosen)
    assert isinstance(schedule, Schedule)
    fixed = schedule.parameters(_STEPS, model.num_tokens).tolist()
    tasks = {f"{_STEPS} steps": Task({"steps": _STEPS}, fixed)}
    name = next(each for each in model.policies if each in checkpoints)
    info = model.policies[name]
    offsets = [[*info.offsets(step, _POLICY_STEPS).values()] for step in range(_POLICY_STEPS)]
    said = "policy" if name == "policy" else name
    settings = {"steps": _POLICY_STEPS, "schedule": said}
    weights = str(checkpoints[name])
    tasks[f"{_POLICY_STEPS} steps, policy"] = Task(settings, offsets, name, weights)
    return tasks
