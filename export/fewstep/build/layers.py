"""Which tensor of a graph is the first to leave the reference's.

A graph and its reference run with intermediate tensors marked as outputs, and the tensors are
compared in topological order. The reference is the bundle's fp32 graph in ONNX Runtime; of that
graph itself it is another bundle of the same model. Without one, tensors are only looked through
for NaN and infinite numbers.

    every recorded input ──both graphs, unmarked──► the image and step whose outputs differ most
    that one, chunk by chunk ──reference, then graph, marked──► errors until one is beyond tolerance

Tensors are marked in chunks of bounded size, and each chunk runs as a subgraph that starts
where the one before ended: neither all tensors nor all weights are in a session together, and
nothing runs twice. A marked tensor is really computed: what a backend would fuse across it is
split, so a fault of such a fusion does not show here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from fewstep.build.recorded_inputs import Place, RecordedInputs, one_row, recorded_inputs, row_axis
from fewstep.build.subgraph import (
    Runner,
    SubgraphExtractor,
    Values,
    Walk,
    grouped,
    run_onnxruntime,
)
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError
from fewstep.runtime.records import GraphInfo
from fewstep.runtime.verify import Divergence, TensorError

Walks = Callable[[SubgraphExtractor, Mapping[str, Array], Collection[str]], Values]
"""Starts handing out tensors of a graph on inputs; the last argument says which will be asked."""

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 3e-1, "fp8": 3e-1}
"""Largest difference of a tensor over its reference's largest magnitude, by precision."""

CHUNK_BYTES = 128 << 20
"""How much the marked outputs of one run may hold; a larger tensor is a chunk of its own."""

_LOW = "/low"  # what fewstep.build.precision appends to a tensor in the low type
_ALIKE = 0.9  # fraction of tensors in common that makes two graphs the same


def first_divergence(
    bundle: Bundle,
    graph: str,
    precision: str = "fp32",
    *,
    reference: Bundle | None = None,
    run: Runner = run_onnxruntime,
    walk: Walks | None = None,
    of: str | None = None,
    backend: str = "onnxruntime on cpu",
    tolerance: float | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Divergence:
    """Find the first tensor of a graph that differs from the reference's.

    Args:
        bundle: a bundle with golden rollouts, whose inputs are used.
        graph: name of the graph.
        precision: which of its forms is examined.
        reference: the same model's bundle from elsewhere, whose fp32 graph is taken for right.
            Without one it is the bundle's own, but for fp32 that nothing but ``run`` runs.
        run: what runs graphs, by subgraphs.
        walk: what runs the graph that is examined, if not ``run``.
        of: precision of the bundle's graphs that it runs, if another than ``precision``.
        backend: what the examined graph is run with, for the report.
        tolerance: error that a tensor may have; :data:`TOLERANCES` has the usual ones.
        chunk_bytes: how much the marked outputs of one run may hold.

    Raises:
        BundleError: no golden rollouts, damage, or a reference of another model.
        EngineError: a graph cannot be run.
    """
    right = reference or (None if precision == "fp32" and walk is None else bundle)
    of = of or precision
    candidate = SubgraphExtractor(bundle.graph_path(graph, of))
    model = SubgraphExtractor(right.graph_path(graph)) if right else None
    if reference is not None and model is not None:
        _require_same_model(bundle, reference, candidate, model)
    walks: Walks = walk or (lambda graph, inputs, wanted: Walk(graph, inputs, wanted, run))
    info = bundle.graph(graph, of)
    one, place, broken = _worst_row(
        candidate, model, recorded_inputs(bundle, graph, right or bundle), info, run, walks
    )
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    scan = _Scan(candidate, model, one, run, walks, limit, chunk_bytes)
    scan.run(until_not_finite=broken)
    return Divergence(
        graph=graph,
        precision=precision,
        backend=backend,
        reference="" if right is None else f"fp32 of {right.path}",
        rollout=place.rollout,
        step=place.step,
        image=place.image,
        tolerance=limit,
        compared=len(scan.found),
        tensors=len((model or candidate).producers),
        first=scan.first,
        before=scan.read_by_first(),
        weights=scan.weights_of_first(),
        first_not_finite=scan.first_not_finite,
        worst=scan.worst(),
    )


class _Scan:
    """One walk over the tensors in topological order."""

    def __init__(
        self,
        candidate: SubgraphExtractor,
        reference: SubgraphExtractor | None,
        inputs: Mapping[str, Array],
        run: Runner,
        walks: Walks,
        tolerance: float,
        chunk_bytes: int,
    ) -> None:
        self._candidate, self._reference = candidate, reference
        self._tolerance, self._chunk_bytes = tolerance, chunk_bytes
        self._pairs = _pairs(candidate, reference)
        self._actual = walks(candidate, inputs, self._pairs)
        self._expected = reference and Walk(reference, inputs, self._pairs.values(), run)
        self.found: dict[str, TensorError] = {}
        self.first: TensorError | None = None
        self.first_not_finite: TensorError | None = None

    def run(self, *, until_not_finite: bool) -> None:
        """Compare chunk by chunk until what is looked for is found, or to the end."""
        for chunk in grouped(self._sizes(), self._chunk_bytes):
            names = [self._pairs[tensor] for tensor in chunk]
            expected = self._expected.values(names) if self._expected else {}
            for tensor, actual in self._actual.values(chunk).items():
                self._note(self._measured(tensor, actual, expected.get(self._pairs[tensor])))
            if self.first and (self.first_not_finite or not until_not_finite):
                return

    def read_by_first(self) -> tuple[TensorError, ...]:
        """Tensors made by other nodes that the first diverging tensor's node reads."""
        if self.first is None:
            return ()
        read = dict.fromkeys(self._candidate.producer(self.first.tensor).input)
        return tuple(self.found[name] for name in read if name in self.found)

    def weights_of_first(self) -> tuple[str, ...]:
        """Weights that the first diverging tensor's node reads."""
        if self.first is None:
            return ()
        read = dict.fromkeys(self._candidate.producer(self.first.tensor).input)
        return tuple(name for name in read if name in self._candidate.weights)

    def worst(self) -> TensorError | None:
        """The tensor with the largest error, if there was a reference."""
        if self._reference is None:
            return None
        return max(self.found.values(), key=lambda each: each.error or 0.0, default=None)

    def _sizes(self) -> Iterator[tuple[str, int]]:
        """Bytes of every tensor and its reference together; unknown ones fill a chunk."""
        for tensor, right in self._pairs.items():
            graphs = ((self._candidate, tensor), (self._reference, right))
            known = [graph.size(name) for graph, name in graphs if graph is not None]
            # A lowered graph does not say its shapes; its tensors are no larger than fp32's.
            sizes = [size for size in known if size is not None] or [self._chunk_bytes]
            yield tensor, max(sizes) * len(known)

    def _measured(self, tensor: str, actual: Array, expected: Array | None) -> TensorError:
        node = self._candidate.producer(tensor)
        largest = float(np.abs(actual.astype(np.float64)).max(initial=0.0))
        return TensorError(
            tensor=tensor,
            node=node.name,
            operator=node.op_type,
            error=None if expected is None else tensor_error(actual, expected),
            largest=largest if math.isfinite(largest) else math.inf,
        )

    def _note(self, found: TensorError) -> None:
        self.found[found.tensor] = found
        # Without a reference only NaN and infinite numbers tell; with one, those it has are right.
        suspect = found.error is None or found.error > 0
        if not found.finite and suspect and self.first_not_finite is None:
            self.first_not_finite = found
        beyond = not found.finite if found.error is None else found.error > self._tolerance
        if beyond and self.first is None:
            self.first = found


def tensor_error(actual: Array, expected: Array) -> float:
    """Largest difference over the reference's largest magnitude, scale-free.

    Equal elements count as no difference, NaN and infinite ones too; elements that are not finite
    in one of both only make it infinite, and so does another shape.
    """
    if actual.shape != expected.shape:
        return math.inf
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    differing = ~((a == e) | (np.isnan(a) & np.isnan(e)))
    if not differing.any():
        return 0.0
    difference = np.abs(a[differing] - e[differing]).max()
    scale = np.abs(e[np.isfinite(e)]).max(initial=0.0) or 1.0
    return float(difference / scale) if math.isfinite(difference) else math.inf


def _pairs(candidate: SubgraphExtractor, reference: SubgraphExtractor | None) -> dict[str, str]:
    """Tensors of a graph in topological order, each with its name in the reference.

    A graph of lower precision keeps a tensor's name, or holds it as ``NAME/low``; when both are
    there the earlier one is what the node computed, the other a cast of it.
    """
    if reference is None:
        return {name: name for name in candidate.producers}
    earliest: dict[str, str] = {}
    for tensor in candidate.producers:
        right = tensor if tensor in reference.producers else tensor.removesuffix(_LOW)
        if right in reference.producers:
            earliest.setdefault(right, tensor)
    return {tensor: right for right, tensor in earliest.items()}


def _worst_row(
    candidate: SubgraphExtractor,
    reference: SubgraphExtractor | None,
    recorded: Sequence[RecordedInputs],
    info: GraphInfo,
    run: Runner,
    walks: Walks,
) -> tuple[dict[str, Array], Place, bool]:
    """The row whose outputs differ most, its place, and whether any output is not finite.

    Without a reference it is the first row with an output that is not finite, else the first.
    """
    worst, broken = (-1.0, 0, recorded[0]), False
    for each in recorded:
        actual = walks(candidate, each.inputs, candidate.outputs).values(candidate.outputs)
        expected: dict[str, Array] = {}
        if reference is not None:
            outputs = reference.outputs
            expected = Walk(reference, each.inputs, outputs, run).values(outputs)
        errors = np.zeros(len(each.places))
        for name, value in actual.items():
            axis = row_axis(info.outputs[name])
            for row in range(len(errors)):
                errors[row] = max(errors[row], _error(value, expected.get(name), axis, row))
        broken = broken or any(not np.isfinite(value).all() for value in actual.values())
        if errors.max() > worst[0]:
            worst = float(errors.max()), int(errors.argmax()), each
    _, row, chosen = worst
    one = {
        name: one_row(value, row_axis(info.inputs[name]), row)
        for name, value in chosen.inputs.items()
    }
    return one, chosen.places[row], broken


def _error(actual: Array, expected: Array | None, axis: int | None, row: int) -> float:
    found = one_row(actual, axis, row)
    if expected is None:
        return 0.0 if np.isfinite(found).all() else math.inf
    return tensor_error(found, one_row(expected, axis, row))


def _require_same_model(
    bundle: Bundle, reference: Bundle, candidate: SubgraphExtractor, right: SubgraphExtractor
) -> None:
    """Refuse references of other models, and graphs whose tensors have other names."""
    if bundle.manifest.model.tensor_shapes() != reference.manifest.model.tensor_shapes():
        raise BundleError(
            f"{reference.path} is of another model than {bundle.path}: expected the same tokens, "
            "codes and widths; name a bundle of the same checkpoints"
        )
    pairs = _pairs(candidate, right)
    alike = [
        t for t, r in pairs.items() if candidate.producer(t).op_type == right.producer(r).op_type
    ]
    if len(alike) < _ALIKE * len(right.producers):
        raise BundleError(
            f"{reference.path}: only {len(alike)} of {len(right.producers)} tensors have the names "
            f"of those of {bundle.path}; export the reference with the same versions of fewstep "
            "and torch"
        )
