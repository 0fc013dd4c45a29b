"""Bounds as rich tables, each titled as what it is: no measurement."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from fewstep.build.estimate import Estimate, GpuBounds, PrecisionBound
from fewstep.build.roofline import LAUNCH, WIDTH_BYTES, StageBound
from fewstep.cli.tables import settings_text

TITLE = "Bound, not a measurement"
_GIB = 1 << 30


def estimate_tables(found: Estimate, *, stages: bool) -> list[Table]:
    """Image and memory by device and precision; before it, if asked for, every stage."""
    parts = [_stage_table(each) for each in found.devices] if stages else []
    return [*parts, _summary_table(found)]


def _summary_table(found: Estimate) -> Table:
    plan = found.plan
    settings = settings_text(plan.settings)
    title = f"{TITLE}: {found.bundle.manifest.name}, batch {plan.batch}; {settings}"
    times = ("Image, ms", "Launches, ms")
    table = _table(title, "Device", "Precision", *times, "Limit", "GiB", "Fits")
    table.caption = (
        f"Launches are part of the times and estimated: {found.launches} a batch, counted in the "
        "graphs (engines have more), each as long as an empty kernel's in a CUDA graph."
    )
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
    sizes = f"{need.total / _GIB:.1f} of {need.device / _GIB:.0f}"
    fits = "[green]yes[/]" if need.fits else "[red]no[/]"
    launches = bound.parts_ms[LAUNCH] / bound.batch
    return _ms(bound.image_ms), _ms(launches), bound.limit, sizes, fits


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
        table.add_column(heading, overflow="fold", no_wrap=heading != "Stage")
    return table
