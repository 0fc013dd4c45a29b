"""``fewstep calibrate decoder``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    decoder_module,
    progress_bar,
    say_verdict,
    show,
)
from fewstep.cli.settings import SettingsCommand, given
from fewstep.cli.texts import TextFileOption, calibration_text

if TYPE_CHECKING:
    from fewstep.runtime.families import Family


class RolloutCommand(SettingsCommand):
    """A command with an option for every setting of rollouts, which the full decoder draws."""

    def taken(self, family: Family) -> Collection[str]:
        """Names of the family's settings that become options."""
        return [name for name in family.Settings.model_fields if name != "decoder"]


def decoder_command(
    context: typer.Context,
    bundle: BundleArgument,
    name: Annotated[
        str, typer.Option(help="Of the decoder, which --decoder chooses it by.")
    ] = "small",
    smaller: Annotated[
        float, typer.Option(help="How many times fewer operations it has at least.")
    ] = 8.0,
    images: Annotated[int, typer.Option(help="Rollouts to learn from.")] = 1_000,
    held_out: Annotated[int, typer.Option(help="Further rollouts to be judged by.")] = 100,
    text_file: TextFileOption = None,
    updates: Annotated[int, typer.Option(help="Updates of its weights.")] = 3_000,
    batch: Annotated[int, typer.Option(help="Images of an update.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="The largest.")] = 2e-3,
    seed: Annotated[
        int, typer.Option(help="Of the first rollout, others count up; and of the training.")
    ] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="File that its weights are kept in too, for fewstep export --small-decoder. "
            "[BUNDLE.decoder-NAME.safetensors]"
        ),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a decoder of this name.")] = False,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Distil a small decoder from the bundle's own, on rollouts of the bundle with these settings.

    No data are needed. The bundle keeps its own decoder; generate --decoder small uses the new one.
    """
    from fewstep.cli.verdicts import rebuild_commands, use_command
    from fewstep.runtime.bundle import Bundle

    module = decoder_module()
    options = module.DecoderOptions(
        bundle=bundle,
        name=name,
        images=images,
        held_out=held_out,
        updates=updates,
        batch=batch,
        smaller=smaller,
        learning_rate=learning_rate,
        seed=seed,
        settings=given(context),
        text=calibration_text(bundle, text_file),
        weights=weights,
        force=force,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
    )
    command = shlex.join(["fewstep", *sys.argv[1:]])
    with progress_bar("reading the bundle", lines=True) as progress:
        made = module.distill(options, command=command, progress=progress)
    show(made.as_dict(), [], as_json)
    if not as_json:
        changed, info = Bundle.read(bundle), made.info
        lines = [
            f"added decoder {name}: {info.psnr_db:.1f} dB from the full one on {held_out} held-out "
            f"images, {made.untrained_psnr_db:.1f} dB before training; {info.smaller:.1f} times "
            f"fewer operations, {info.flops / 1e9:.3g} instead of {info.full_flops / 1e9:.3g} "
            "GFLOP an image",
            f"weights: {made.weights}",
            *(
                ["the bundle's engines lack this decoder until they are built"]
                if made.engines
                else []
            ),
        ]
        again = rebuild_commands(changed) if made.engines else []
        say_verdict(lines, [*again, use_command(changed, "--decoder", name)])
