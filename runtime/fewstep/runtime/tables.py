"""Results as rich tables, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from fewstep.runtime import bench, doctor, verify
from fewstep.runtime.families.masked.model import PolicyInfo
from fewstep.runtime.inspect import Inspection, PlanMemory
from fewstep.runtime.kernels.compile import CompiledKernels
from fewstep.runtime.records import TensorInfo

STAGES = ("transformer", "policy", "sampling", "decoder", "device", "other")


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
        "tokens": f"{info.grid[0]} × {info.grid[1]} of {info.codebook_size:,} codes",
        "image": f"{info.image_size[0]} × {info.image_size[1]}",
        "condition": _condition(inspection),
        "policy networks": ", ".join(map(_policy, info.policies.items())) or "-",
        "precisions": ", ".join(inspection.bundle.precisions),
        "CUDA kernels": _kernels(inspection),
        "engines": _engines(inspection),
        "defaults": ", ".join(f"{key} {value}" for key, value in info.defaults),
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
    return [model, graphs, files]


def _policy(named: tuple[str, PolicyInfo]) -> str:
    name, info = named
    if info.untrained_seed is not None:
        return f"{name} (untrained)"
    return name if info.steps is None else f"{name} (for {info.steps} steps)"


def plan_table(memory: PlanMemory) -> Table:
    """Every buffer of a plan, and sums."""
    key = memory.key
    guided = "guided" if key.guided else "not guided"
    schedule = key.policy or "fixed schedule"
    title = f"Plan: batch {key.batch}, {key.steps} steps, {guided}, {schedule}"
    table = _table(title, "Buffer", "Type", "Shape", "Role", "Bytes")
    for name, spec in memory.buffers.items():
        table.add_row(name, spec.dtype, str(list(spec.shape)), spec.role, f"{spec.bytes:,}")
    table.add_row("this plan", "", "", "", f"{memory.total_bytes:,}", style="bold")
    table.add_row("shared by all plans", "", "", "", f"{memory.shared_bytes:,}")
    table.add_row("graph files", "", "", "", f"{memory.weights_bytes:,}")
    return table


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
    """Every figure of every graph with its bar."""
    title = f"Golden rollouts, {report.precision}, {report.backend} on {report.device}"
    table = _table(escape(title), "Graph", "Schedule", "Figure", "Value", "Bar", "")
    for check in report.checks:
        mark = "[green]passed[/]" if check.passed else "[red]failed[/]"
        names = (escape(check.graph), escape(check.schedule), check.title)
        bar = f"{check.sign} {check.limit:g}"
        table.add_row(*names, f"{check.value:.3g}", bar, mark)
    return table


def bench_tables(report: bench.Report) -> list[Table]:
    """Percentiles and throughput of every contender, then where the time goes."""
    how = f"{report.backend} in {report.precision} on {report.device}"
    latency = _table(f"Latency with {how}, ms", "", "p50", "p90", "p99", "images/s", "overhead")
    for m in report.measurements:
        times = (m.total_ms.p50, m.total_ms.p90, m.total_ms.p99, m.images_per_s)
        overhead = "-" if m.overhead is None else f"{m.overhead:.1%}"
        latency.add_row(m.name, *(f"{value:.1f}" for value in times), overhead)
    known = [s for s in STAGES if any(s in m.stages_ms for m in report.measurements)]
    stages = _table("Where it goes, median ms", "", "all tokens", *known)
    for m in report.measurements:
        parts = (f"{m.stages_ms[s].p50:.2f}" if s in m.stages_ms else "-" for s in known)
        stages.add_row(m.name, f"{m.tokens_ms:.1f}", *parts)
    return [latency, stages]


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


def _condition(inspection: Inspection) -> str:
    condition = inspection.bundle.manifest.model.condition
    if condition.kind == "class":
        names = f": {', '.join(condition.class_names)}" if condition.class_names else ""
        return f"{condition.num_classes} classes{names}"
    return f"text states {condition.length} × {condition.width}"
