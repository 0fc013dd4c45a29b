"""Results as rich tables, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from fewstep.runtime import bench, doctor, verify
from fewstep.runtime.inspect import Inspection, PlannedDecode, listed
from fewstep.runtime.kernels.compile import CompiledKernels
from fewstep.runtime.presets import CurveInfo
from fewstep.runtime.records import TensorInfo

_MOST = 40  # characters of a setting, which may be a list of a value for every step


def megabytes(size: int) -> str:
    """A size in MB with one decimal."""
    return f"{size / 1e6:.1f} MB"


def doctor_tables(diagnosis: doctor.Diagnosis) -> list[Table]:
    """The machine, the packages, then what they can do."""
    machine = _table("Machine", "", "")
    for name, value in diagnosis.machine.items():
        machine.add_row(name, escape(value))
    packages = _table("Packages", "", "")
    for name, version in diagnosis.packages.items():
        packages.add_row(name, escape(version or "-"))
    abilities = _table("What works here", "", "", "Found", "To enable it")
    for ability in diagnosis.abilities:
        mark = "[green]yes[/]" if ability.works else "[red]no[/]"
        abilities.add_row(ability.name, mark, escape(ability.detail), escape(ability.remedy))
    return [machine, packages, abilities]


def inspect_tables(inspection: Inspection) -> list[Table]:
    """Model, graphs, files and provenance."""
    manifest = inspection.bundle.manifest
    model = _table(escape(f"{manifest.name} ({manifest.family})"), "", "")
    info = manifest.model
    rows = {
        **info.describe(),
        "image": f"{info.image_size[0]} × {info.image_size[1]}",
        "condition": info.condition.describe(),
        "precisions": ", ".join(inspection.bundle.precisions),
        "CUDA kernels": _kernels(inspection),
        "engines": _engines(inspection),
        **_judge(inspection),
        "defaults": settings_text(info.defaults.model_dump(exclude_none=True), _MOST),
        "created": manifest.provenance.created,
        "command": manifest.provenance.command or "-",
        "tools": ", ".join(f"{k} {v}" for k, v in manifest.provenance.tools.items()),
    }
    for name, value in rows.items():
        model.add_row(name, escape(value))
    graphs = _table("Graphs", "Graph", "Inputs", "Outputs")
    for name, graph in manifest.graphs.items():
        graphs.add_row(escape(name), _tensors(graph.inputs), _tensors(graph.outputs))
    files = _table("Files", "File", "Size", "SHA-256", "State")
    for name, file in manifest.files.items():
        state = inspection.damage.get(name)
        files.add_row(
            escape(name),
            megabytes(file.bytes),
            file.sha256[:12],
            f"[red]{state}[/]" if state else "[green]intact[/]",
        )
    curve = [] if manifest.curve is None else [curve_table(manifest.curve)]
    return [model, *curve, graphs, files]


def curve_table(curve: CurveInfo) -> Table:
    """A row for each point, the fastest first, with the settings in which points differ."""
    of = f"{curve.images:,} images, {curve.features}; {curve.backend} in {curve.precision}"
    title = escape(f"Curve of {of}, {curve.processor}")
    table = _table(title, "Settings", "ms an image", "Fréchet distance", "Preset")
    every = [point.settings for point in curve.points]
    for point in curve.points:
        differing = {
            name: value
            for name, value in point.settings.items()
            if any(each.get(name) != value for each in every)
        }
        table.add_row(
            escape(settings_text(differing, _MOST)),
            f"{point.image_ms:.1f}",
            f"{point.frechet_distance:.1f}",
            ", ".join(point.presets),
        )
    return table


def _judge(inspection: Inspection) -> dict[str, str]:
    """What scores images, if the bundle has such a graph."""
    manifest = inspection.bundle.manifest
    if (judge := manifest.judge) is None:
        return {}
    size = megabytes(sum(manifest.files[file].bytes for file in judge.graph.files))
    return {"judge": f"{size}, of {judge.policy} on {judge.features}: generate --best-of N"}


def plan_tables(plan: PlannedDecode) -> list[Table]:
    """Every operation of a decode, then every buffer, and sums."""
    title = f"Plan: {settings_text({'batch': plan.batch, **plan.settings}, _MOST)}"
    operations = _table(escape(title), "Step", "Operation", "", "On")
    for each in listed(plan.program):
        op = each["op"] if each["times"] == "1" else f"{each['op']} ×{each['times']}"
        operations.add_row(each["step"], op, escape(each["what"]), escape(each["on"]))
    buffers = _table("Buffers", "Buffer", "Type", "Shape", "Role", "Bytes")
    for name, spec in plan.program.every_buffer.items():
        role = "shared" if name in plan.program.shared else spec.role
        buffers.add_row(name, spec.dtype, str(list(spec.shape)), role, f"{spec.bytes:,}")
    buffers.add_row("this plan", "", "", "", f"{plan.total_bytes:,}", style="bold")
    buffers.add_row("shared by all plans", "", "", "", f"{plan.shared_bytes:,}")
    buffers.add_row("graph files", "", "", "", f"{plan.weights_bytes:,}")
    return [operations, buffers]


def engines_table(reports: Sequence[Any]) -> Table:
    """Engines with what they are for and what building them took; one backend and precision."""
    info = reports[0].info
    targets = ", ".join(info.compute_capabilities)
    title = f"{info.precision} engines for {targets}, {info.backend} {info.version}"
    table = _table(title, "Graph", "Size", "Built in", "Peak memory")
    for each in reports:
        took = f"{each.info.seconds:.1f} s" if each.built else "up to date"
        memory = megabytes(each.info.peak_memory_bytes)
        table.add_row(escape(each.info.graph), megabytes(each.size_bytes), took, memory)
    return table


def kernels_table(compiled: CompiledKernels) -> Table:
    """Registers, shared memory and spills per kernel and compute capability."""
    title = f"CUDA kernels, {compiled.compiler}"
    table = _table(title, "Kernel", "Capability", "Registers", "Shared", "Spills", "Stack")
    for each in sorted(compiled.resources, key=lambda r: (r.kernel, float(r.capability))):
        sizes = (each.registers, each.shared_bytes, each.spill_bytes, each.stack_bytes)
        table.add_row(each.kernel, each.capability, *map(str, sizes))
    return table


def variant_tables(reports: Sequence[Any]) -> list[Table]:
    """What stayed in fp32 in graphs of lower precision, and what would not have fitted."""
    table = _table("Graphs", "Graph", "Precision", "Nodes", "Kept in fp32", "Largest value")
    for each in reports:
        sizes = (str(each.nodes), str(len(each.kept)), f"{each.largest:.4g}")
        table.add_row(escape(each.graph), each.precision, *sizes)
    beyond = _table("Kept in fp32 because of their range", "Graph", "Node", "Largest value")
    for each in reports:
        for node, value in each.out_of_range.items():
            beyond.add_row(escape(each.graph), escape(node), f"{value:.4g}")
    return [table, beyond] if beyond.row_count else [table]


def verify_table(report: verify.Report) -> Table:
    """Every metric with its tolerance, under the graph that it is of."""
    title = f"Golden rollouts, {report.precision}, {report.backend} on {report.device}"
    table = _table(escape(title), "Graph and rollout", "Metric", "Value", "Tolerance", "")
    for graph in dict.fromkeys(check.graph for check in report.checks):
        table.add_section()
        table.add_row(f"[bold]{escape(graph)}[/]")
        for check in (each for each in report.checks if each.graph == graph):
            mark = "[green]passed[/]" if check.passed else "[red]failed[/]"
            names = (f"  {escape(check.rollout)}", check.title)
            table.add_row(*names, f"{check.value:.3g}", check.wanted, mark)
    return table


def bench_tables(report: bench.Report) -> list[Table]:
    """Percentiles and throughput of every contender, then where the time goes."""
    machine = report.machine.get("processor", "") if report.device == "cpu" else ""
    where = f"{report.device} ({machine})" if machine else report.device
    title = f"Latency with {report.backend} in {report.precision} on {where}, ms"
    measured = report.measurements
    percentiles = [
        each for each in ("p50", "p90", "p99") if any(getattr(m.total_ms, each) for m in measured)
    ]
    latency = _table(escape(title), "", *percentiles, "ratio", "images/s", "overhead", "runs")
    for m in measured:
        found = (getattr(m.total_ms, each) for each in percentiles)
        times = ("-" if value is None else f"{value:.1f}" for value in found)
        overhead = "-" if m.overhead is None else f"{m.overhead:.1%}"
        rates = (f"{m.ratio:.2f}", f"{m.images_per_s:.1f}", overhead, str(m.runs))
        latency.add_row(m.name, *times, *rates)
    known = stages_of(report.measurements)
    stages = _table("Where it goes, median ms", "", *known)
    for m in report.measurements:
        parts = (f"{m.stages_ms[s].p50:.2f}" if s in m.stages_ms else "-" for s in known)
        stages.add_row(m.name, *parts)
    return [latency, stages]


def stages_of(measurements: Iterable[bench.Measurement]) -> list[str]:
    """The stages of all measurements, in the order in which they run; what is left comes last."""
    found = dict.fromkeys(stage for each in measurements for stage in each.stages_ms)
    return sorted(found, key=lambda stage: stage == "other")


def settings_text(settings: Mapping[str, Any], most: int | None = None) -> str:
    """Settings by name, with values as the command line takes them.

    Args:
        settings: values by name.
        most: characters of a value that are shown; all if ``None``.
    """
    spelled = {name: _spelled(value) for name, value in settings.items()}
    return ", ".join(f"{name} {_cut(text, most)}" for name, text in spelled.items())


def _cut(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def _spelled(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        first, *others = map(_spelled, value)
        return first if {*others} <= {first} else ":".join((first, *others))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(headings))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _tensors(tensors: dict[str, TensorInfo]) -> str:
    return escape(
        "\n".join(
            f"{name} {info.dtype} [{', '.join(map(str, info.shape))}]"
            for name, info in tensors.items()
        )
    )


def _kernels(inspection: Inspection) -> str:
    info = inspection.bundle.manifest.kernels
    return f"{', '.join(info.cubins)} ({info.compiler})" if info else "none"


def _engines(inspection: Inspection) -> str:
    """One line for each backend, version, precision, set of targets, and GPUs verified on."""
    sets: dict[tuple[str, str], list[str]] = {}
    manifest = inspection.bundle.manifest
    for each in manifest.engines:
        targets = ", ".join(each.compute_capabilities)
        what = f"{each.precision} for {targets} ({each.backend} {each.version})"
        marks = [f"{mark.gpu} (CUDA {mark.driver})" for mark in manifest.verified_on(each)]
        where = f"verified on {', '.join(marks)}" if marks else "never verified"
        sets.setdefault((what, where), []).append(each.graph)
    lines = [f"{what}: {', '.join(graphs)}; {where}" for (what, where), graphs in sets.items()]
    return "\n".join(lines) or "none"
