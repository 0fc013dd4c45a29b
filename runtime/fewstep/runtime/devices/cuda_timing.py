"""Times of enqueued work, from pairs of CUDA events."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.runtime.devices.cuda_driver import checked, load_bindings


@dataclass(frozen=True)
class Span:
    """A stage and the events before and after its work."""

    stage: str
    start: Any
    end: Any


class Timeline:
    """Collects spans on one stream.

    While a graph is captured, the records become nodes of it: their events then hold the times of
    the graph's last launch, and the spans belong to the graph (:meth:`capturing`).
    """

    def __init__(self, stream: int) -> None:
        self._cuda = load_bindings()
        self._stream = self._cuda.CUstream(stream)
        self._pending: list[Span] = []
        self._captured: list[Span] | None = None
        self._elapsed: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def span(self, stage: str) -> Iterator[None]:
        """Time what the block enqueues."""
        span = Span(stage, self._event(), self._event())
        try:
            self._record(span.start)
            yield
            self._record(span.end)
        except BaseException:
            self.release([span])
            raise
        (self._pending if self._captured is None else self._captured).append(span)

    @contextlib.contextmanager
    def capturing(self) -> Iterator[list[Span]]:
        """Gather the spans of a graph that is captured meanwhile; the caller releases them."""
        spans = self._captured = []
        try:
            yield spans
        except BaseException:
            self.release(spans)
            raise
        finally:
            self._captured = None

    def collect(self, replayed: Sequence[tuple[Span, int]]) -> None:
        """Add up the pending spans, and those of launched graphs; all work must be over.

        Args:
            replayed: spans of graphs, and how often each was launched: events hold the times of the
                last launch, which stands for all.
        """
        for span, times in (*((each, 1) for each in self._pending), *replayed):
            taken = self._cuda.cuEventElapsedTime(span.start, span.end)
            self._elapsed[span.stage] += times * checked(taken, "reading an event")
        self.drop()

    def drop(self) -> None:
        """Forget the pending spans."""
        self.release(self._pending)
        self._pending = []

    def take(self) -> dict[str, float]:
        """Milliseconds per stage since the last call."""
        taken = dict(self._elapsed)
        self._elapsed.clear()
        return taken

    def release(self, spans: list[Span]) -> None:
        """Destroy the events of these spans."""
        for span in spans:
            self._cuda.cuEventDestroy(span.start)
            self._cuda.cuEventDestroy(span.end)

    def _event(self) -> Any:
        flags = int(self._cuda.CUevent_flags.CU_EVENT_DEFAULT)
        return checked(self._cuda.cuEventCreate(flags), "making an event")

    def _record(self, event: Any) -> None:
        flags = self._cuda.CUevent_record_flags
        flag = flags.CU_EVENT_RECORD_DEFAULT
        if self._captured is not None:  # a node of the graph, instead of an order within it
            flag = flags.CU_EVENT_RECORD_EXTERNAL
        recorded = self._cuda.cuEventRecordWithFlags(event, self._stream, int(flag))
        checked(recorded, "recording an event")
