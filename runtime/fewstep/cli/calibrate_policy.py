"""``fewstep calibrate policy``."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    errors,
    policy_module,
    quiet,
    say_verdict,
    show,
)
from fewstep.cli.settings import given
from fewstep.cli.settings import options as options_of
from fewstep.runtime.progress import Progress, no_progress

_SHOWN_ROWS = 12
_COLUMNS = {
    "update": "Update",
    "reward": "Reward",
    "discriminator_accuracy": "Discriminator",
    "loss": "Loss",
    "action_deviation": "Deviation",
    "frechet_distance": "Fréchet",
}


def policy_command(
    context: typer.Context,
    bundle: BundleArgument,
    data: Annotated[
        Path,
        typer.Option(
            help="Real images: a folder with one per class inside, or .npz with images and labels "
            "(or text)."
        ),
    ],
    steps: Annotated[
        int | None,
        typer.Option(help="Steps to tune the policy for; left out where every decode has as many."),
    ] = None,
    updates: Annotated[int, typer.Option(help="Updates of the policy.")] = 80,
    rollouts: Annotated[int, typer.Option(help="Images generated per update.")] = 160,
    batch: Annotated[int, typer.Option(help="Images generated together.")] = 32,
    reward: Annotated[
        str, typer.Option(help="adversarial; or classifier, feature-distance: static ones.")
    ] = "adversarial",
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive/--fixed", help="Per image, or one action per step for all."),
    ] = True,
    features: Annotated[
        str, typer.Option(help="Feature network: efficientnet-lite0, timm:NAME or timm:NAME=FILE.")
    ] = "efficientnet-lite0",
    learning_rate: Annotated[
        float, typer.Option(help="Learning rate of policy and critic.")
    ] = 1e-4,
    discriminator_learning_rate: Annotated[
        float, typer.Option(help="Learning rate of the discriminator.")
    ] = 3e-4,
    deviation: Annotated[
        tuple[float, float],
        typer.Option(help="Standard deviation of the actions drawn, first and last."),
    ] = (0.4, 0.1),
    policy_epochs: Annotated[int, typer.Option(help="Epochs over an update's rollouts.")] = 5,
    discriminator_epochs: Annotated[
        int, typer.Option(help="The discriminator's epochs over the last updates' images.")
    ] = 5,
    evaluate_every: Annotated[int, typer.Option(help="Updates between evaluations.")] = 10,
    evaluation_images: Annotated[int, typer.Option(help="Images of an evaluation.")] = 1_000,
    start: Annotated[
        str | None,
        typer.Option(help="A policy of the bundle, a fixed schedule, or scratch, to start from."),
    ] = None,
    size_of: Annotated[
        str | None,
        typer.Option(help="Policy of the bundle whose size the new one has. [that it starts from]"),
    ] = None,
    smoothing: Annotated[
        float | None,
        typer.Option(
            help="How much of the actions before a step counts, 0 … 1 (AdaGen). [as of the policy "
            "that it starts from]"
        ),
    ] = None,
    keep_judge: Annotated[
        bool,
        typer.Option(
            "--keep-judge", help="Put the discriminator into the bundle, for generate --best-of."
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the new policy. [policy-STEPS-steps]")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints, plots and logs. [BUNDLE.NAME]")
    ] = None,
    restart: Annotated[bool, typer.Option(help="Begin anew instead of going on.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Tune the policy network by PPO against a discriminator, on the bundle's own engines.

    Run the same command again after an interruption: it goes on from the last checkpoint. Several
    GPUs or machines: torchrun --nproc-per-node N -m fewstep calibrate policy …
    """
    from fewstep.cli.verdicts import rebuild_commands, use_command
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.policies import rules_of

    module = policy_module()
    options = module.PolicyOptions(
        bundle=bundle,
        data=data,
        steps=steps,
        updates=updates,
        rollouts=rollouts,
        batch=batch,
        reward=reward,
        adaptive=adaptive,
        features=features,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        learning_rate=learning_rate,
        discriminator_learning_rate=discriminator_learning_rate,
        deviation=deviation,
        policy_epochs=policy_epochs,
        discriminator_epochs=discriminator_epochs,
        evaluate_every=evaluate_every,
        evaluation_images=evaluation_images,
        seed=seed,
        start=start,
        settings=given(context),
        size_of=size_of,
        smoothing=smoothing,
        keep_judge=keep_judge,
        name=name,
        work=work,
        restart=restart,
    )
    with _live() as (progress, log):
        command = shlex.join(["fewstep", *sys.argv[1:]])
        tuned = module.tune(options, command=command, progress=progress, log=log)
    if _first_process():
        show(tuned.as_dict(), [], as_json)
        if not as_json:
            changed = Bundle.read(bundle)
            wanted = options_of(rules_of(changed).settings(tuned.name, tuned.info.steps))
            again = rebuild_commands(changed) if tuned.engines else []
            say_verdict(_summary(tuned), [*again, use_command(changed, *wanted)])


@contextlib.contextmanager
def _live() -> Iterator[tuple[Progress, Callable[[dict[str, Any]], None]]]:
    """A progress bar under the rows of the last updates, on stderr; lines for logs."""
    if quiet() or not _first_process():
        yield no_progress, lambda row: None
        return
    if not errors.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    bars, rows = Bars(*columns, console=errors), list[dict[str, Any]]()
    task = bars.add_task("starting", total=1.0)
    with Live(bars, console=errors, refresh_per_second=4) as live:

        def progress(what: str, done: float) -> None:
            bars.update(task, description=what, completed=done)

        def log(row: dict[str, Any]) -> None:
            rows.append(row)
            live.update(Group(_table(rows[-_SHOWN_ROWS:]), bars))

        yield progress, log


def _lines() -> tuple[Progress, Callable[[dict[str, Any]], None]]:
    """A line for every kind of work that begins, and for every evaluation."""
    begun = set[str]()

    def progress(what: str, done: float) -> None:
        if what not in begun:
            errors.print(escape(what), highlight=False)
        begun.add(what)

    def log(row: dict[str, Any]) -> None:
        if "frechet_distance" in row:
            line = f"update {row['update']}: Fréchet distance {row['frechet_distance']:.1f}"
            errors.print(line, highlight=False)

    return progress, log


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for title in _COLUMNS.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in _COLUMNS))
    return table


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _summary(tuned: Any) -> list[str]:
    from fewstep.cli.tables import megabytes

    evaluated = [row for row in tuned.history if "frechet_distance" in row]
    best = tuned.info.tuning
    return [
        f"added {tuned.name}: Fréchet distance {best.frechet_distance:.1f} after {best.updates} "
        f"updates, {evaluated[0]['frechet_distance']:.1f} before the first",
        *(
            [f"kept the judge, {megabytes(tuned.judge_bytes)}: fewstep generate --best-of N"]
            if tuned.judge_bytes
            else []
        ),
        f"plots, logs and checkpoint: {tuned.work}",
        *(["the bundle's engines lack this policy until they are built"] if tuned.engines else []),
    ]


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
