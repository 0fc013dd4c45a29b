"""The ``fewstep`` command: thin commands over the packages; results as tables or JSON.

Imports of anything heavy stay inside the commands, so that ``--help`` and bad arguments answer at
once and ``export`` alone needs torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fewstep.runtime.errors import FewstepError, RequestError, missing

app = typer.Typer(
    name="fewstep",
    help="Put few-step token image generators on NVIDIA edge GPUs. "
    "Any command takes --debug to show where an error came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console()
errors = Console(stderr=True)

_CAPABILITY = "--compute-capability"

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.")]
BackendOption = Annotated[str, typer.Option(help="auto or onnxruntime.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, or cuda (cuda:1 is the second).")]
PrecisionOption = Annotated[str, typer.Option(help="fp32, or what fewstep build --precision made.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command("doctor")
def doctor_command(as_json: JsonOption = False) -> None:
    """What this machine can run, and what to install for more."""
    from fewstep.runtime.doctor import diagnose
    from fewstep.runtime.tables import doctor_tables

    diagnosis = diagnose()
    _show(diagnosis.as_dict(), doctor_tables(diagnosis), as_json)
    for warning in diagnosis.warnings:
        errors.print(f"[yellow]warning:[/] {warning}", highlight=False)
    if not diagnosis.runs:
        raise typer.Exit(1)


@app.command("demo")
def demo_command(
    sample: Annotated[Path, typer.Option(help="Folder of a trained sample.")] = Path(
        "samples/fashion"
    ),
    out_folder: Annotated[Path, typer.Option("--out", help="Where results go.")] = Path(
        "demo-output"
    ),
) -> None:
    """The whole way on the shipped sample: export, verify, generate, time."""
    demo = _export_module("demo")
    demo.run(sample, out_folder, out)


@app.command("export")
def export_command(
    family: Annotated[str, typer.Argument(help="adanat or maskgit.")],
    transformer: Annotated[Path, typer.Option(help="Transformer checkpoint.")],
    tokenizer: Annotated[Path, typer.Option(help="VQGAN tokenizer checkpoint.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Bundle folder to make.")],
    policy: Annotated[Path | None, typer.Option(help="Policy checkpoint (adanat).")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Constructor arguments as JSON; not for published sizes.")
    ] = None,
    unconditional_text: Annotated[
        Path | None, typer.Option(help=".npy with the text states of the empty text.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
) -> None:
    """Export an author's checkpoints to a bundle of ONNX graphs."""
    export = _export_module()
    files = export.Checkpoints(transformer, tokenizer, policy, config, unconditional_text)
    command = shlex.join(["fewstep", *sys.argv[1:]])
    with errors.status("starting") as status:
        bundle = export.export_masked(
            family,
            files,
            out_folder,
            overwrite=force,
            command=command,
            progress=lambda stage: status.update(stage),
        )
    out.print(f"wrote {escape(str(bundle.path))}", highlight=False, soft_wrap=True)


@app.command("build")
def build_command(
    bundle: BundleArgument,
    kernels: Annotated[bool, typer.Option("--kernels", help="Compile the CUDA kernels.")] = False,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="One or more, such as 8.7 8.9; without it all that are supported."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Make the graphs in fp16 or bf16 from the fp32 ones.")
    ] = None,
    fp32_heads: Annotated[
        bool, typer.Option(help="Keep the logits' and actions' last product in fp32.")
    ] = True,
    force: Annotated[bool, typer.Option(help="Compile even what is up to date.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compile CUDA kernels, or make graphs of lower precision, ahead of time; needs no GPU."""
    if not kernels and precision is None:
        raise RequestError("nothing to build: pass --kernels, or --precision fp16 or bf16")
    if kernels and precision is not None:
        raise RequestError("--kernels and --precision are built one after the other: pass one")
    if precision is not None:
        _build_variant(bundle, precision, fp32_heads, as_json)
        return
    from fewstep.runtime.build import build_kernels
    from fewstep.runtime.tables import kernels_table

    with errors.status("compiling kernels"):
        compiled = build_kernels(bundle, compute_capability or (), force=force)
    if compiled is None:
        _show({"up_to_date": True}, ["the kernels are up to date"], as_json)
        return
    _show(compiled.as_dict(), [kernels_table(compiled)], as_json)


def _build_variant(path: Path, precision: str, heads: bool, as_json: bool) -> None:
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.tables import variant_tables

    variants = _export_module("variants")
    with errors.status("measuring ranges on the golden rollouts, lowering the graphs"):
        _, reports = variants.add_variant(Bundle.read(path), precision, heads=heads)
    _show({"graphs": [each.as_dict() for each in reports]}, variant_tables(reports), as_json)


@app.command("inspect")
def inspect_command(
    bundle: BundleArgument,
    plan: Annotated[
        bool, typer.Option("--plan", help="Memory of the decode loop instead, buffer by buffer.")
    ] = False,
    batch: Annotated[int, typer.Option(help="With --plan: images decoded together.")] = 1,
    steps: Annotated[int | None, typer.Option(help="With --plan: transformer passes.")] = None,
    schedule: Annotated[str | None, typer.Option(help="With --plan: schedule, or policy.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Graphs, shapes, sizes and provenance of a bundle; checks every hash."""
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.inspect import inspect, plan_memory
    from fewstep.runtime.tables import inspect_tables, plan_table

    if plan:
        memory = plan_memory(Bundle.read(bundle), batch=batch, steps=steps, schedule=schedule)
        _show(memory.as_dict(), [plan_table(memory)], as_json)
        return
    if (batch, steps, schedule) != (1, None, None):
        raise RequestError("--batch, --steps and --schedule go with --plan")
    inspection = inspect(Bundle.read(bundle))
    _show(inspection.as_dict(), inspect_tables(inspection), as_json)
    if inspection.damage:
        errors.print(f"[red]error:[/] damaged: {', '.join(inspection.damage)}", highlight=False)
        raise typer.Exit(1)


@app.command("verify")
def verify_command(
    bundle: BundleArgument,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Replay the golden rollouts: logit error, token agreement, PSNR."""
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.tables import verify_table
    from fewstep.runtime.verify import verify

    with Generator.open(bundle, backend=backend, device=device, precision=precision) as generator:
        report = verify(generator)
    _show(report.as_dict(), [verify_table(report)], as_json)
    if not report.passed:
        raise typer.Exit(1)


@app.command("generate")
def generate_command(
    bundle: BundleArgument,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Class id or name; repeat for more.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help=".npy of text states [B, L, D], for text bundles.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images per class.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Transformer passes.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first image; others count up.")] = 0,
    guidance: Annotated[
        str | None, typer.Option(help="Guidance scale, or START:END for a ramp.")
    ] = None,
    sampling_temperature: Annotated[str | None, typer.Option(help="Number or START:END.")] = None,
    masking_temperature: Annotated[str | None, typer.Option(help="Number or START:END.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Mask-ratio schedule (cosine, ...) or policy.")
    ] = None,
    out_path: Annotated[
        Path, typer.Option("--out", help="Picture file (several images make a grid) or folder.")
    ] = Path("fewstep.png"),
    trace: Annotated[
        Path | None, typer.Option(help="GIF of tokens being decided step by step.")
    ] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Generate images from a bundle."""
    from fewstep.runtime import gallery
    from fewstep.runtime.generator import Generator

    gallery.check_outputs(out_path, trace)
    with Generator.open(bundle, backend=backend, device=device, precision=precision) as generator:
        wanted = gallery.conditions(generator, classes, text, count)
        with errors.status("generating (the first run here compiles the kernels, once)"):
            result = generator.generate(
                **wanted.request,
                steps=steps,
                seed=seed,
                schedule=schedule,
                guidance=_ramp("guidance", guidance),
                sampling_temperature=_ramp("sampling temperature", sampling_temperature),
                masking_temperature=_ramp("masking temperature", masking_temperature),
            )
        written = gallery.write(result, wanted, out_path)
        if trace is not None:
            written.append(gallery.write_trace(generator, result, wanted, trace))
    summary = {
        "files": [str(path) for path in written],
        "images": len(result.images),
        "timings_ms": result.timings_ms,
    }
    made = f"{len(result.images)} image{'s' if len(result.images) != 1 else ''}"
    line = f"{made} in {result.timings_ms['total']:.0f} ms → {', '.join(map(str, written))}"
    _show(summary, [escape(line)], as_json)


@app.command("bench")
def bench_command(
    bundle: BundleArgument,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; repeat for more.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="Steps; repeat for more.")] = None,
    runs: Annotated[int, typer.Option(help="Measured runs of each contender.")] = 10,
    schedule: Annotated[str | None, typer.Option(help="Schedule, or policy.")] = None,
    baseline: Annotated[
        bool,
        typer.Option(
            help="Also time PyTorch eager with the authors' 2T + 1 passes and raster order; "
            "needs --transformer and --tokenizer."
        ),
    ] = False,
    transformer: Annotated[Path | None, typer.Option(help="The bundle's checkpoint.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The bundle's checkpoint.")] = None,
    config: Annotated[Path | None, typer.Option(help="As given to export.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Latency percentiles per stage, images per second, peak memory."""
    from fewstep.runtime import bench
    from fewstep.runtime.files import replacing
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.tables import bench_tables, megabytes

    sizes = batch or [1]
    with Generator.open(
        bundle,
        backend=backend,
        device=device,
        precision=precision,
        max_batch=max(sizes),
        profile=True,
    ) as generator:
        counts = steps or [generator.bundle.manifest.model.defaults.steps]
        contenders = {
            f"fewstep, batch {b}, {t} steps": (
                bench.contender(generator, batch=b, steps=t, schedule=schedule),
                b,
                t,
            )
            for b in sizes
            for t in counts
        }
        if baseline:
            if transformer is None or tokenizer is None:
                raise RequestError("--baseline needs --transformer and --tokenizer")
            eager = _export_module("eager")
            sampler = eager.EagerSampler.load(generator.bundle, transformer, tokenizer, config)
            tokens = generator.bundle.manifest.model.num_tokens
            for b in sizes:
                for t in counts:
                    run = eager.contender(sampler, generator, batch=b, steps=t, schedule=schedule)
                    contenders[f"PyTorch, batch {b}, {t} steps"] = (run, b, t)
                raster = bench.raster_contender(generator, batch=b)
                contenders[f"raster order, batch {b}"] = (raster, b, tokens)
        with errors.status(f"timing {len(contenders)} contenders, {runs} runs each"):
            report = bench.report(generator, bench.measure(contenders, runs=runs))
    for table in bench_tables(report):
        out.print(table)
    beside = " (PyTorch included)" if baseline else ""
    out.print(f"peak memory of this process{beside}: {megabytes(report.peak_memory_bytes)}")
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n")


def main() -> None:
    """Entry point: one line and exit code 1 for any ``FewstepError``."""
    debug = "--debug" in sys.argv
    sys.argv = spaced_capabilities([each for each in sys.argv if each != "--debug"])
    try:
        app()
    except FewstepError as error:
        if debug:
            raise
        errors.print(f"[red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        errors.print(
            f"[red]error:[/] {type(error).__name__}: {_plain(error)} (a defect of fewstep: please "
            "report it with what --debug shows)",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        if debug:
            raise
        errors.print("interrupted; nothing half-written was left behind")
        sys.exit(130)


def spaced_capabilities(arguments: list[str]) -> list[str]:
    """Allow ``--compute-capability 8.6 8.9``: the option's name before every value."""
    spelled: list[str] = []
    option = False
    for argument in arguments:
        value = re.fullmatch(r"[0-9]+\.[0-9]", argument) is not None
        if option and value and spelled[-1] != _CAPABILITY:
            spelled.append(_CAPABILITY)
        option = argument == _CAPABILITY or (option and value)
        spelled.append(argument)
    return spelled


def _plain(error: BaseException) -> str:
    return escape(" ".join(str(error).split()))


def _show(data: dict[str, Any], shown: list[Table] | list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(data, indent=2))
        return
    for item in shown:
        out.print(item, highlight=False, soft_wrap=isinstance(item, str))


def _ramp(name: str, text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    start, _, end = text.partition(":")
    try:
        return float(start), float(end or start)
    except ValueError:
        raise RequestError(f"{name} must be a number or START:END, got '{text}'") from None


def _export_module(name: str = "") -> Any:
    """The export package, or a module of it, when its dependencies are installed."""
    for package in ("torch", "onnx", "onnxscript", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise missing(package, "export")
    return importlib.import_module(f"fewstep.export.{name}" if name else "fewstep.export")
