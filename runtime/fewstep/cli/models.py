"""``fewstep models``: checkpoints that authors published and ``fewstep export`` takes by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from fewstep.cli.common import JsonOption, command, say_next, show

if TYPE_CHECKING:
    from fewstep.export.published import PublishedFile, PublishedModel


def models_command(
    name: Annotated[str | None, typer.Argument(help="One of them; all by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List published checkpoints that fewstep export takes by name, with their authors' claims.

    With a name: what the model is, its files, and where they are.
    """
    from fewstep.export.published import published, published_model

    models = list(published().values()) if name is None else [published_model(name)]
    data = {"models": [model.model_dump(mode="json") for model in models]}
    details = [] if name is None else _details(models[0])
    show(data, [_table(models), *details], as_json)
    if not as_json:
        say_next(*_next(models, name))


def _next(models: list[PublishedModel], name: str | None) -> Iterator[str]:
    if name is None:
        yield command("models", models[0].name)
    elif all(file.hub or not file.required for file in models[0].files.values()):
        yield command("export", name)


def _table(models: list[PublishedModel]) -> Table:
    table = Table(
        title="Published models; FID by their authors, for those steps",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ("Name", "Form", "Weights", "Steps", "FID", "Licence"):
        right = heading in ("Weights", "Steps", "FID")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    forms = list(dict.fromkeys(model.form for model in models))
    last = ""
    for model in sorted(models, key=lambda each: forms.index(each.form)):
        if last not in ("", model.form):
            table.add_section()
        last = model.form
        fid = "-" if model.fid is None else f"{model.fid:.2f}"
        weights = "-" if model.parameters is None else f"{model.parameters / 1e6:.0f} M"
        steps = "-" if model.steps is None else str(model.steps)
        table.add_row(model.name, model.form, weights, steps, fid, model.licence or "-")
    return table


def _details(model: PublishedModel) -> Iterator[str]:
    """What a model is, its authors' page, and its files: sizes, and where they are."""
    yield f"\n[bold]{escape(model.name)}[/]  {escape(model.page)}"
    yield from (f"  {escape(each)}" for each in (model.summary, model.paper) if each)
    for option, file in model.files.items():
        size = "" if file.megabytes is None else f"{file.megabytes:,.0f} MB"
        names = " or ".join(file.names)
        room = max(39 - len(names), len(size) + 1)
        yield escape(f"  {option:<19}{names}{size:>{room}}  {_source(file)}")
        places = (file.hub, file.page, file.note, file.sha256 and f"SHA-256 {file.sha256}")
        yield from (f"    {escape(place)}" for place in places if place)
    if any(file.required and not file.hub for file in model.files.values()):
        yield f"  By hand: download to one folder, then fewstep export {model.name} --from FOLDER"


def _source(file: PublishedFile) -> str:
    by = "fetched" if file.hub else "by hand"
    return by if file.required else f"{by}, optional"
