"""Bounds for the terminal: the answer first, then tables titled as what they are, no measurement;
what they rest on comes last."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from fewstep.build.estimate import (
    CONTEXT_BYTES,
    SYSTEM_BYTES,
    Estimate,
    GpuBounds,
    MemoryNeed,
    PrecisionBound,
)
from fewstep.build.roofline import LAUNCH, WIDTH_BYTES, StageBound
from fewstep.cli.tables import settings_text

TITLE = "Bound, not a measurement"
_GIB = 1 << 30
_MANY = 3


def estimate_tables(found: Estimate, *, stages: bool) -> list[Table | str]:
    """The answer; image and memory by device and precision; every stage, if asked for; and what
    all of it rests on."""
    parts = [_stage_table(each) for each in found.devices] if stages else []
    return [*answers(found), _summary_table(found), *parts, *_reasons(found), *_assumptions(found)]


def answers(found: Estimate) -> list[str]:
    """A line for each device, in fp16 or the first precision that it has; where there are many,
    for the fastest and the slowest."""
    best = [(device, each) for device in found.devices if (each := _spoken_of(device)) is not None]
    if len(best) <= _MANY:
        return [escape(_answer(*each)) for each in best]
    best.sort(key=lambda pair: pair[1].image_ms)
    ends = {"fastest": best[0], "slowest": best[-1]}
    return [escape(f"{name} of {len(best)}, {_answer(*each)}") for name, each in ends.items()]


def _spoken_of(device: GpuBounds) -> PrecisionBound | None:
    able = [each for each in device.precisions if each.reason is None]
    fp16 = [each for each in able if each.precision == "fp16"]
    return next(iter([*fp16, *able]), None)


def _answer(device: GpuBounds, bound: PrecisionBound) -> str:
    need = bound.memory
    room = "" if need.fits else f"; {_memory(need)} GiB are too much for it"
    return (
        f"{device.gpu.name}: at least {_ms(bound.image_ms)} ms per image in {bound.precision} "
        f"({len(bound.steps_ms)} steps, batch {bound.batch}), bound by {bound.limit}{room}"
    )


def _reasons(found: Estimate) -> list[str]:
    """Why a precision has no time, a line for each reason."""
    devices: dict[tuple[str, str], list[str]] = {}
    for device in found.devices:
        for each in device.precisions:
            if each.reason is not None:
                devices.setdefault((each.precision, each.reason), []).append(device.gpu.name)
    return [
        escape(f"no {precision} on {', '.join(names)}: {reason}")
        for (precision, reason), names in devices.items()
    ]


def _assumptions(found: Estimate) -> list[str]:
    return [
        "a bound, not a measurement: peak rates and bandwidths of published specifications, "
        "weights and inputs read once, all else free",
        f"launches are part of the times and estimated: {found.launches} a batch, counted in the "
        "graphs (engines have more), each as long as an empty kernel's in a CUDA graph",
        f"memory: weights and plan, with {CONTEXT_BYTES / _GIB:.0f} GiB assumed for CUDA and "
        f"engines and, on a Jetson, {SYSTEM_BYTES / _GIB:.0f} GiB for the system",
    ]


def _summary_table(found: Estimate) -> Table:
    plan = found.plan
    settings = settings_text(plan.settings)
    title = f"{TITLE}: {found.bundle.manifest.name}, batch {plan.batch}; {settings}"
    times = ("Image, ms", "Launches, ms")
    table = _table(title, "Device", "Precision", *times, "Limit", "GiB", "Fits")
    for device in found.devices:
        if len(device.precisions) > 1:
            table.add_section()
        for each in device.precisions:
            table.add_row(device.gpu.name, each.precision, *_summary(each))
    return table


def _summary(bound: PrecisionBound) -> tuple[str, ...]:
    if bound.reason is not None:
        return ("-",) * 5
    need = bound.memory
    fits = "[green]yes[/]" if need.fits else "[red]no[/]"
    launches = bound.parts_ms[LAUNCH] / bound.batch
    return _ms(bound.image_ms), _ms(launches), bound.limit, _memory(need), fits


def _memory(need: MemoryNeed) -> str:
    return f"{need.total / _GIB:.1f} of {need.device / _GIB:.0f}"


def _stage_table(device: GpuBounds) -> Table:
    gpu = device.gpu
    mode = f", {gpu.power_mode}" if gpu.power_mode else ""
    title = f"{TITLE}: one run on {gpu.title} ({gpu.compute_capability}){mode}"
    sizes = ("GFLOP", "MB", "Launches")
    table = _table(title, "", "Stage", "Runs", *sizes, "ms", "Limit")
    table.caption = f"{gpu.launch.us:g} µs a launch, part of the times; {gpu.launch.said}"
    for precision in device.precisions:
        table.add_section()
        if precision.reason is not None:
            table.add_row(precision.precision, *("-",) * 7)
        for each in precision.stages:
            table.add_row(precision.precision, *_stage(each, precision.precision))
    return table


def _stage(bound: StageBound, precision: str) -> tuple[str, ...]:
    stage = bound.stage
    touched = stage.weights * WIDTH_BYTES[precision] + stage.read_bytes + stage.written_bytes
    counts = (str(stage.runs), f"{stage.flops / 1e9:,.2f}")
    times = (str(stage.launches), _ms(bound.ms), bound.limit)
    return escape(stage.title), *counts, f"{touched / 1e6:,.1f}", *times


def _ms(value: float) -> str:
    """Three digits or so, and no exponent."""
    if not value:
        return "0"
    if value < 1e-4:
        return "<0.0001"
    if value >= 100:
        return f"{value:,.0f}"
    digits = 4 if value < 0.01 else 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:.{digits}f}"


def _table(title: str, *headings: str) -> Table:
    """A table narrow enough for a terminal of 80 columns."""
    table = Table(
        title=escape(title),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
