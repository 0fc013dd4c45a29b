"""Which of several backends is fastest for a bundle on this machine: measured once, and kept.

Every run of a graph that one image takes is timed on zeros, each different one a few times. What
the loop does between them is the same for all backends and is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from fewstep.runtime.binder import Binder
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Device
from fewstep.runtime.engines import Engine
from fewstep.runtime.errors import FewstepError
from fewstep.runtime.families import family_of, model_of
from fewstep.runtime.files import replacing
from fewstep.runtime.load import OthersLoad
from fewstep.runtime.program import Program, Run

_TIMES = 3
_FILE = "trials.json"
_MOST_KEPT = 64
_MUCH_LOAD = 0.15


@dataclass(frozen=True)
class Trial:
    """Milliseconds of an image's graphs by backend, of those that work, and why others do not.

    ``kept``: where the times are, if they are kept: not those of a busy machine, and not without a
    backend that may work tomorrow. ``fresh``: measured just now.
    """

    times_ms: Mapping[str, float]
    refused: Mapping[str, str]
    kept: Path | None = None
    fresh: bool = True

    @property
    def fastest(self) -> str:
        """The backend to take.

        Raises:
            ValueError: none works.
        """
        return min(self.times_ms, key=self.times_ms.__getitem__)

    def why_not(self) -> dict[str, str]:
        """Why each of the others is not taken."""
        best = self.times_ms[self.fastest]
        slower = {
            name: f"{ms:.3g} ms for the graphs of an image, {self.fastest} {best:.3g} ms"
            for name, ms in self.times_ms.items()
            if name != self.fastest
        }
        return {**self.refused, **slower}


def tried(
    folder: Path,
    key: Mapping[str, str],
    backends: Collection[str],
    measure: Callable[[str], float],
) -> Trial:
    """Times of backends: those kept in the folder for the key, or measured now and kept.

    Args:
        folder: where they are kept.
        key: all that times depend on.
        backends: their names.
        measure: opens a backend, gives the milliseconds of an image's graphs, and closes it.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    known, file = _read(folder / _FILE), folder / _FILE
    if found := _sound(known.get(name, {}).get("times_ms"), backends):
        return Trial(found, {}, file, fresh=False)
    times, refused, others = dict[str, float](), dict[str, str](), OthersLoad()
    for backend in backends:
        try:
            times[backend] = round(measure(backend), 4)
        except FewstepError as error:
            refused[backend] = str(error)
    # A package may be there tomorrow; and times of a busy machine tell little.
    if refused or (others.share() or 0.0) > _MUCH_LOAD:
        return Trial(times, refused)
    recent = dict(list(known.items())[1 - _MOST_KEPT :])
    content = {**recent, name: {"times_ms": times, **key}}
    return Trial(times, refused, file if _write(file, content) else None)


def image_ms(bundle: Bundle, device: Device, engines: Mapping[str, Engine]) -> float:
    """Milliseconds of the graphs of one image with the bundle's defaults.

    Args:
        bundle: whose program it is.
        device: that the engines are on.
        engines: by graph name.

    Raises:
        EngineError: an engine does not run.
        OutOfMemoryError: there is not enough memory.
    """
    model = model_of(bundle, {**bundle.manifest.graphs, **engines})
    family = family_of(bundle.manifest.model.kind)
    key = next(iter(family.corners(model, 1)))
    return _runs_ms(family.program(model, key), device, engines)


def _runs_ms(program: Program, device: Device, engines: Mapping[str, Engine]) -> float:
    buffers = program.every_buffer
    with device.workspace(buffers) as workspace:
        for name in buffers:  # memory as it comes may hold no token, or numbers that slow one down
            workspace.write(name, program.initial.get(name, 0))
        binder, counts = Binder(device, engines, workspace, {}), Counter[object]()
        calls: dict[object, Callable[[], None]] = {}
        with contextlib.closing(binder):
            for op in program.unrolled():
                if isinstance(op, Run):
                    views = op.bindings.items()
                    alike = op.graph, tuple((name, view.shape_in(buffers)) for name, view in views)
                    counts[alike] += 1
                    if alike not in calls:
                        calls[alike] = binder.call(op)
            return sum(count * _least_ms(calls[alike]) for alike, count in counts.items())


def _least_ms(call: Callable[[], None]) -> float:
    call()
    taken = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1e3)
    return min(taken)


def _sound(times: object, backends: Collection[str]) -> dict[str, float]:
    """Times of these backends as they were kept; nothing if it is something else."""
    if not isinstance(times, dict) or times.keys() != set(backends):
        return {}
    return times if all(isinstance(each, float) and each > 0 for each in times.values()) else {}


def _read(file: Path) -> dict[str, dict[str, object]]:
    """What was kept; nothing where that is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: each for name, each in content.items() if isinstance(each, dict)}


def _write(file: Path, content: Mapping[str, object]) -> bool:
    try:
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except (FewstepError, OSError):
        return False
    return True
