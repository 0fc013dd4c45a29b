"""``fewstep calibrate quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli.common import (
    BundleArgument,
    JsonOption,
    ThreadsOption,
    calibration_module,
    command,
    progress_bar,
    say_note,
    say_verdict,
    show,
)
from fewstep.cli.settings import given as generation_given
from fewstep.cli.texts import TextFileOption, calibration_text
from fewstep.runtime.errors import RequestError
from fewstep.runtime.machine import at_most

_WITH_REPEAT = ("--other-layers", "--fp32-heads")


def quantize_command(
    context: typer.Context,
    bundle: BundleArgument,
    precision: Annotated[str, typer.Option(help="int8, or fp8 by nvidia-modelopt.")] = "int8",
    rollouts: Annotated[
        int | None, typer.Option(help="Rollouts that ranges are measured on. [40]")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(help="Further rollouts that quality is measured on. [20]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first rollout; others count up. [0]")
    ] = None,
    text_file: TextFileOption = None,
    graph: Annotated[
        list[str] | None,
        typer.Option(help="Graphs to quantize, one or more. [all that can be]"),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Ranges: min-max, entropy or percentile. [min-max]")
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(help="Of the magnitudes, for that method. [99.99]")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Matmuls, or convolutions, that stay in higher precision, one or more; "
            "GRAPH/NAME where several graphs have one of a name."
        ),
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Find the fewest matmuls to keep within the tolerances.")
    ] = False,
    by: Annotated[
        str | None, typer.Option(help="What --auto keeps or quantizes: layer or block. [layer]")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Tolerance of --auto: nats from fp32 per token. [0.001]")
    ] = None,
    min_token_agreement: Annotated[
        float | None,
        typer.Option(help="Tolerance of --auto: same most likely codes, 0 … 1. [0.95]"),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            help="Tolerance of --auto for graphs without logits: relative error of what they give. "
            "[0.05]"
        ),
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(help="Tolerance of --auto for decoders: PSNR of images, dB. [37]"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of --auto's ranking.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="File for the ranges, to use again while they fit.")
    ] = None,
    other_layers: Annotated[
        str | None,
        typer.Option(help="What is not quantized: fp32, for CPUs, or fp16, for TensorRT. [fp32]"),
    ] = None,
    fp32_heads: Annotated[
        bool | None,
        typer.Option(
            "--fp32-heads/--no-fp32-heads",
            help="With fp16: the last matmuls stay in fp32, which 7.5 cannot build. [on]",
        ),
    ] = None,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="As recorded in the bundle; --other-layers may differ.")
    ] = False,
    modelopt_python: Annotated[
        Path | None, typer.Option(help="Python that has nvidia-modelopt, for fp8. [this one]")
    ] = None,
    force: Annotated[bool, typer.Option(help="Quantize even what is up to date.")] = False,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Quantize graphs, on activations of the bundle's own rollouts with these settings."""
    given = {
        "rollouts": rollouts,
        "held_out": held_out,
        "seed": seed,
        "method": method,
        "percentile": percentile,
        "other_layers": other_layers,
        "fp32_heads": fp32_heads,
        "keep": frozenset(keep) if keep else None,
    }
    graphs = frozenset(graph or ())
    auto_only = {
        "by": by,
        "max_kl": max_kl,
        "min_token_agreement": min_token_agreement,
        "max_error": max_error,
        "min_psnr": min_psnr,
    }
    generation = generation_given(context)
    _check_together(given | {"graph": graph or None} | generation, auto_only, auto, repeat)
    settings, flow = calibration_module("quantize.settings"), calibration_module("quantize.flow")
    options = _said(given)
    if auto:
        options["auto"] = settings.tolerances(**({"by": "layer"} | _said(auto_only)))
    request = flow.QuantizeRequest(
        bundle=bundle,
        settings=settings.Settings(precision=precision, generation=generation, **options),
        text=calibration_text(bundle, text_file),
        graphs=graphs,
        repeat=repeat,
        force=force,
        cache=cache,
        plot=plot,
        modelopt_python=modelopt_python,
    )
    with at_most(threads), progress_bar("reading the bundle") as progress:
        outcome = flow.quantize(request, progress)
    for note in outcome.notes:
        say_note(note)
    tables = calibration_module("quantize.tables")
    shown: list[Any] = tables.quantize_tables(outcome)
    if not outcome.made:
        shown.append(f"the {outcome.precision} graphs are up to date; --force makes them again")
    show(outcome.as_dict(), shown, as_json)
    if not as_json:
        ready = f"{'made' if outcome.made else 'kept'}: {outcome.precision} graphs"
        wanted = outcome.precision if outcome.precision == "int8" else "all"  # CPUs lack fp8
        again = command("verify", bundle, "--precision", wanted)
        say_verdict([f"{ready}, {tables.quality(outcome)}"], [again])


def _said(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _check_together(
    given: dict[str, Any], auto_only: dict[str, Any], auto: bool, repeat: bool
) -> None:
    """Refuse options that would be ignored."""
    idle = _spelled(auto_only)
    taken = [name for name in _spelled(given) if name not in _WITH_REPEAT]
    taken += [*idle, *(["--auto"] if auto else [])]
    if repeat and taken:
        raise RequestError(f"--repeat takes that from the bundle: leave out {', '.join(taken)}")
    if idle and not auto:
        raise RequestError(f"only --auto takes {', '.join(idle)}: pass --auto too")


def _spelled(options: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in _said(options)]
