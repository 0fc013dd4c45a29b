"""Judging engines by the golden rollouts: every run of a graph, and the decode as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fewstep.runtime.devices import Array
from fewstep.runtime.errors import EngineError
from fewstep.runtime.families import Trace
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify.golden import Recording, recordings, replay
from fewstep.runtime.verify.metrics import METRICS, largest_errors
from fewstep.runtime.verify.report import AT_LEAST, LOOP, Check, Report
from fewstep.runtime.verify.tolerances import TOLERANCES, Tolerances

_LARGEST = frozenset(("logit_error", "action_error", "latent_error", "state_error", "noise_error"))
"""Metrics of which the largest of all runs counts; of others the mean does."""


def verify(generator: Generator) -> Report:
    """Replay every golden rollout of the generator's bundle against its precision's tolerances.

    Raises:
        BundleError: the bundle has no golden rollouts, or incomplete ones.
        EngineError: a graph cannot be run.
    """
    tolerances = TOLERANCES[generator.precision]
    checks = [
        check
        for recording in recordings(generator.bundle).values()
        for check in _checks(generator, recording, tolerances)
    ]
    return Report(
        bundle=str(generator.bundle.path),
        precision=generator.precision,
        checks=tuple(checks),
        backend=generator.backend,
        device=generator.device.name,
    )


def _checks(generator: Generator, recording: Recording, tolerances: Tolerances) -> Iterator[Check]:
    for (graph, tensor), (actual, expected) in _outputs(generator, recording).items():
        kind = generator.family.kinds[tensor]
        for name, metric in METRICS[kind].items():
            yield _check(graph, recording.name, name, metric(actual, expected), tolerances)
    name, value = _loop(generator, recording)
    yield _check(LOOP, recording.name, name, [value], tolerances)


def _check(
    graph: str, rollout: str, metric: str, runs: Sequence[float], tolerances: Tolerances
) -> Check:
    value = float(np.max(runs) if metric in _LARGEST else np.mean(runs))
    steps = tuple(runs) if len(runs) > 1 else ()
    tolerance = getattr(tolerances, metric)
    return Check(graph, rollout, metric, value, tolerance, metric not in AT_LEAST, steps)


def _outputs(
    generator: Generator, recording: Recording
) -> dict[tuple[str, str], tuple[list[Array], list[Array]]]:
    """What every graph gave and should have given, a list entry a run, by graph and tensor."""
    parts: dict[tuple[int, str, str], list[tuple[Array, Array]]] = {}
    count = len(recording.seeds)
    for each in replay(generator, recording):
        run = recording.runs.get(each.index)
        for tensor, recorded in ({} if run is None else run.outputs).items():
            kind = generator.family.kinds[tensor]
            actual = recording.kept(kind, each.call.outputs[tensor])
            halves = recorded.reshape(-1, count, *recorded.shape[1:])[:, each.images]
            pair = actual, halves.reshape(actual.shape)
            parts.setdefault((each.index, each.call.graph, tensor), []).append(pair)
    found: dict[tuple[str, str], tuple[list[Array], list[Array]]] = {}
    for (_, graph, tensor), pairs in sorted(parts.items(), key=lambda item: item[0][0]):
        actual, expected = (np.concatenate(side) for side in zip(*pairs, strict=True))
        lists = found.setdefault((graph, tensor), ([], []))
        lists[0].append(actual)
        lists[1].append(expected)
    return found


def _loop(generator: Generator, recording: Recording) -> tuple[str, float]:
    """How near the recorded request comes to what was recorded, free-running: metric and value."""
    family, model = generator.family, generator.model
    wanted: Trace = family.trace(model, recording.decisions)
    tokens = wanted.final.dtype.kind == "i"
    decided = [name for name, each in wanted.decisions.items() if each.dtype.kind == "i"]
    name = "token_agreement" if tokens or decided else "loop_error"
    try:
        found: Trace = generator.run(recording.request(family, model)).trace
    except EngineError:  # a graph gave NaN: the other metrics say which; nothing agrees
        return name, math.nan if name == "loop_error" else 0.0
    if tokens:
        return name, float((found.final == wanted.final).mean())
    if decided:
        return name, _agreement(_tokens(found, decided), _tokens(wanted, decided))
    return name, largest_errors([found.final], [wanted.final])[0]


def _agreement(found: Array, wanted: Array) -> float:
    """Fraction of equal tokens ``[steps, images, N]`` of every image up to its first step with
    another one, which would change all after it; where nothing is decided it is negative."""
    same = found == wanted
    so_far = np.logical_and.accumulate(same.all(2))
    counted = (wanted >= 0) & np.concatenate([np.ones_like(so_far[:1]), so_far[:-1]])[..., None]
    return float(same[counted].mean())


def _tokens(trace: Trace, names: Sequence[str]) -> Array:
    """Decisions side by side, ``[steps, images, N]``."""
    arrays = (trace.decisions[name] for name in names)
    return np.concatenate([each.reshape(*each.shape[:2], -1) for each in arrays], 2)
