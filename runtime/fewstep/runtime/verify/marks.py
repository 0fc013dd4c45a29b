"""Marks in a bundle: on which GPUs its engines were verified (:class:`VerifiedOn`)."""

from __future__ import annotations

import datetime

from fewstep import __version__
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.on_gpu import Gpu
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import EngineInfo, VerifiedOn
from fewstep.runtime.verify.report import Report


def mark(generator: Generator, report: Report) -> None:
    """Note in the bundle where TensorRT's engines were verified; ONNX Runtime leaves no mark.

    Engines that a passed report has figures of are marked for this GPU. A failed one removes the
    marks that any of the generator's engines have for this GPU, with any driver: a wrong token
    does not tell which engine is to blame. Nothing is written where only the date would change.

    Args:
        generator: what was verified; its bundle is read again, as others may have added to it.
        report: the outcome.

    Raises:
        BundleError: there is no valid bundle any more.
        OutputError: the bundle cannot be written; it is as before.
    """
    if generator.on_gpu is None:
        return
    gpu, then = generator.on_gpu.gpu, generator.bundle
    judged = {_content(then, info) for info in generator.on_gpu.records.values()}
    if report.passed:
        checked = {check.graph for check in report.checks}
        judged = {each for each in judged if each[0] in checked}
    before = Bundle.read(then.path)
    if _marked(before, judged, gpu, report.passed) == before.manifest.engines:
        return  # also where the bundle cannot be written
    with Bundle.locked(then.path) as now:
        engines = _marked(now, judged, gpu, report.passed)
        now.update({}, engines=[each.model_dump() for each in engines])


def _marked(
    bundle: Bundle, judged: set[tuple[str, str, str]], gpu: Gpu, passed: bool
) -> tuple[EngineInfo, ...]:
    """The records of a bundle's engines, with the verdict in those that were judged."""
    return tuple(
        _judged(bundle, info, gpu, passed) if _content(bundle, info) in judged else info
        for info in bundle.manifest.engines
    )


def _content(bundle: Bundle, info: EngineInfo) -> tuple[str, str, str]:
    return info.graph, info.file, bundle.manifest.files[info.file].sha256


def _judged(bundle: Bundle, info: EngineInfo, gpu: Gpu, passed: bool) -> EngineInfo:
    """A record with the verdict on one GPU in the place of any that it has for it."""
    marks = bundle.manifest.verified_on(info)
    kept = tuple(each for each in marks if not gpu.is_card_of(each))
    if not passed:
        return info.model_copy(update={"verified": kept})
    fresh = VerifiedOn(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
        engine_sha256=bundle.manifest.files[info.file].sha256,
        fewstep=__version__,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
    )
    if any(each.model_copy(update={"date": fresh.date}) == fresh for each in marks):
        return info
    return info.model_copy(update={"verified": (*kept, fresh)})
