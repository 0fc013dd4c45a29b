"""What is in a bundle: graphs, sizes, provenance, whether the files are intact, and the memory
that a plan of the decode loop takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.errors import RequestError
from fewstep.runtime.plan import PlanKey, first_pass_buffers, plan_buffers
from fewstep.runtime.request import RAMPS, require_unconditional, schedule_of, steps_of


@dataclass(frozen=True)
class Inspection:
    """A bundle's manifest, its size on disk, and the files that are missing or changed."""

    bundle: Bundle
    total_bytes: int
    damage: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        manifest = self.bundle.manifest.model_dump(mode="json")
        return {
            "path": str(self.bundle.path),
            "total_bytes": self.total_bytes,
            "damage": self.damage,
            "manifest": manifest,
        }


def inspect(bundle: Bundle) -> Inspection:
    """Hash every file of the bundle and sum up its size."""
    total = sum(info.bytes for info in bundle.manifest.files.values())
    return Inspection(bundle, total, bundle.damage())


@dataclass(frozen=True)
class PlanMemory:
    """Bytes of every buffer that one plan allocates, and of what all plans share.

    ``weights_bytes`` is the size of the graph files, which every backend loads in some form. The
    activations inside the engines are the backend's own and not known here.
    """

    key: PlanKey
    buffers: dict[str, BufferSpec]
    shared: dict[str, BufferSpec]
    weights_bytes: int

    @property
    def total_bytes(self) -> int:
        """Sum over the plan's own buffers."""
        return sum(spec.bytes for spec in self.buffers.values())

    @property
    def shared_bytes(self) -> int:
        """Sum over the buffers that all plans share."""
        return sum(spec.bytes for spec in self.shared.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        every = {**self.buffers, **{f"shared/{name}": spec for name, spec in self.shared.items()}}
        return {
            **asdict(self.key),
            "buffers": {
                name: {**asdict(spec), "bytes": spec.bytes} for name, spec in every.items()
            },
            "total_bytes": self.total_bytes,
            "shared_bytes": self.shared_bytes,
            "weights_bytes": self.weights_bytes,
        }


def plan_memory(
    bundle: Bundle, *, batch: int = 1, steps: int | None = None, schedule: str | None = None
) -> PlanMemory:
    """What a plan of ``Generator.generate`` would allocate; nothing is allocated here.

    Args:
        bundle: the bundle.
        batch: images decoded together.
        steps: transformer passes; the bundle's default if ``None``.
        schedule: a curve, ``policy`` or a policy's name; the bundle's default if ``None``.

    Raises:
        RequestError: as ``Generator.generate``.
    """
    if not isinstance(batch, int) or batch < 1:
        raise RequestError(f"batch must be a whole number, at least 1, got {batch}")
    model, graphs = bundle.manifest.model, bundle.manifest.graphs
    steps = steps_of(model, steps)
    chosen = schedule_of(model, schedule, dict.fromkeys(RAMPS), steps)
    policy = chosen if isinstance(chosen, str) else None
    guided = isinstance(chosen, str) or chosen.guided
    require_unconditional(model, guided)
    key = PlanKey(batch, steps, guided=guided, policy=policy)
    shared = first_pass_buffers(model, graphs) if guided else {}
    files = [file for graph in graphs.values() for file in (graph.file, *graph.external)]
    weights = sum(bundle.manifest.files[file].bytes for file in dict.fromkeys(files))
    return PlanMemory(key, plan_buffers(model, graphs, key), shared, weights)
