"""What images of a server say of themselves: the same as those of ``fewstep generate``."""

from __future__ import annotations

from typing import Any

from fewstep.cli.order import Order
from fewstep.cli.record import record_of
from fewstep.runtime.condition import ClassCondition
from fewstep.server.job import Job
from fewstep.server.worker import Worker


def recorded(worker: Worker, job: Job, seed: int) -> dict[str, Any] | None:
    """The record (:mod:`fewstep.cli.record`) of the image of a job that has ``seed``; none of an
    edit, whose record would be of the files that it was made of."""
    generator, condition = worker.generator, worker.model.info.condition
    if generator is None or job.edit is not None:
        return None
    settings = {name: value for name, value in job.settings.items() if name != "negative"}
    ((_, (wanted, *_)),) = job.asked.items()  # all images of a job are of the same
    if isinstance(condition, ClassCondition):
        order = Order((wanted,), (seed,), (condition.label(wanted),))
    else:
        negative = job.settings.get("negative")
        order = Order((0,), (seed,), (wanted,), text=(wanted,), negative=negative)
    return record_of(generator, settings, order, [0])
