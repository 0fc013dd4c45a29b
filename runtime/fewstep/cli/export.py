"""``fewstep export``: a command for every published form, with the options that the form has, and
one for every published model, whose files are fetched or found."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewstep.cli.app import App, Group
from fewstep.cli.common import command, errors, export_module, out, say_next, say_note
from fewstep.runtime.errors import CheckpointError, OutputError, choose

if TYPE_CHECKING:
    from fewstep.export.published import PublishedModel
    from fewstep.export.source import Source
    from fewstep.runtime.bundle import Bundle

_TYPES: dict[str, tuple[Any, Any, str | None]] = {
    "file": (str | None, None, "FILE"),
    "files": (list[str], (), "FILE"),
    "folder": (str | None, None, "FOLDER"),
    "flag": (bool, False, None),
    "text": (str | None, None, "TEXT"),
}
"""Type, default and placeholder of an option by its kind. Files are no ``Path`` yet: they may be
addresses of the Hub."""

_CONFIG = "Constructor arguments as JSON; not for published sizes."
_SMALL_DECODER = "What calibrate decoder wrote, of the same tokenizer."
_FROM = "Folder with the model's files, as the authors name them."
_SHEET = "Picture of what the bundle makes, to look at."


def _sources() -> dict[str, Source]:
    """All forms; they are known without torch."""
    from fewstep.export.source import sources

    return sources()


def _models() -> dict[str, PublishedModel]:
    """The published models of these forms."""
    from fewstep.export.published import published

    known = _sources()
    return {name: model for name, model in published().items() if model.form in known}


class _Forms(Group):
    """The forms and published models that are known as the command line is read."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_sources(), *_models()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        sources, models = _sources(), _models()
        if "://" in cmd_name:
            raise CheckpointError(
                f"{cmd_name} is a file, and a form or model comes first; expected such as: "
                f"{command('export', 'maskgit', '--transformer', cmd_name)} … (see export --help)"
            )
        if cmd_name not in sources and cmd_name not in models:
            known = [*sources, *models]
            raise CheckpointError(choose("form or published model", cmd_name, known))
        model = None if cmd_name in sources else models[cmd_name]
        source = sources[cmd_name if model is None else model.form]
        text = source.summary if model is None else f"{model.summary} ({model.form})."
        one = App()
        one.command(cmd_name, help=text)(_command(source, model))
        return typer.main.get_command(one)


app = App(
    cls=_Forms,
    help="Export an author's checkpoints to a bundle of ONNX graphs: those of a form, named file "
    "by file, or a published model by its name (fewstep models lists them). Files may be "
    "hf://OWNER/REPO/PATH/FILE[@REVISION], and folders hf://OWNER/REPO[/FOLDER][@REVISION].",
    subcommand_metavar="FORM|MODEL [OPTIONS]",
)


def _command(source: Source, model: PublishedModel | None) -> Callable[..., None]:
    """The command of a form or model: a function with a parameter for every option, as typer
    reads it."""

    def run(
        *,
        out_folder: Path | None,
        force: bool,
        contact_sheet: Path | None,
        from_folder: Path | None = None,
        **given: Any,
    ) -> None:
        from fewstep.runtime.files import require_writable

        flow = export_module("flow")
        target = out_folder or Path(source.name if model is None else model.name)
        if contact_sheet is not None:
            require_writable(contact_sheet)
        files = _files(source, model, from_folder, given, lambda: _check_target(target, force))
        with errors.status("starting") as status:
            bundle = flow.export(
                source.name,
                files,
                target,
                overwrite=force,
                command=shlex.join(["fewstep", *sys.argv[1:]]),
                progress=lambda stage, done: status.update(stage),
                note=say_note,
                contact_sheet=contact_sheet,
            )
        out.print(f"wrote {escape(str(bundle.path))}", highlight=False, soft_wrap=True)
        _say_next(bundle)

    named = model is not None
    parameters = [
        *(
            _parameter(o.name, o.flag, o.help, o.kind, required=o.required and not named)
            for o in source.options
        ),
        _parameter("config", "--config", _CONFIG, "file"),
        _parameter("small_decoder", "--small-decoder", _SMALL_DECODER, "file"),
        _parameter("contact_sheet", "--contact-sheet", _SHEET, Path | None),
        _parameter("force", "--force", "Replace an existing bundle.", "flag"),
    ]
    if model is None:
        parameters += [_parameter("out_folder", "--out", "Bundle folder to make.", Path, True)]
    else:
        text = f"Bundle folder to make; {model.name} by default."
        parameters += [
            _parameter("from_folder", "--from", _FROM, Path | None),
            _parameter("out_folder", "--out", text, Path | None),
        ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}  # those of the signature count
    return run


def _parameter(
    name: str, flag: str, text: str, kind: Any, required: bool = False
) -> inspect.Parameter:
    """A parameter for an option; ``kind``: of :class:`Option`, or the parameter's type."""
    annotation, default, metavar = _TYPES.get(kind, (kind, None, None))
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[annotation, typer.Option(flag, help=text, metavar=metavar)],
    )


def _files(
    source: Source,
    model: PublishedModel | None,
    folder: Path | None,
    given: Mapping[str, Any],
    check_target: Callable[[], None],
) -> dict[str, Any]:
    """What to export, by option, with every file on this machine.

    Args:
        source: the form.
        model: the published model, whose files are looked for unless they are given.
        folder: where files of the model lie.
        given: what was typed, by option.
        check_target: called before anything is fetched.

    Raises:
        CheckpointError: files are not there, or cannot be fetched.
    """
    from fewstep.export import hub, hub_folder, published

    found = {} if model is None else published.sources_of(model, folder, given)
    kinds = {option.name: option.kind for option in source.options}
    kinds |= {"config": "file", "small_decoder": "file"}
    files: dict[str, Any] = {}
    for name, value in {**given, **found}.items():
        if kinds[name] not in ("file", "files", "folder") or not value:
            files[name] = value
            continue
        paths = []
        module = hub_folder if kinds[name] == "folder" else hub
        for place in value if kinds[name] == "files" else [value]:
            if not hub.is_address(place):
                paths.append(Path(place))
                continue
            file = module.parse(place)
            check_target()
            say_note(f"fetching {file}, unless it is in the cache")
            paths.append(module.fetch(file, bars=errors.is_terminal))
        files[name] = paths if kinds[name] == "files" else paths[0]
    if model is not None:
        published.check(model, {name: files[name] for name in found})
    return files


def _check_target(folder: Path, force: bool) -> None:
    """Refuse a bundle folder that the export would refuse, before gigabytes are fetched."""
    from fewstep.runtime.files import require_writable

    if folder.exists() and not force:
        raise OutputError(f"{folder} exists already; remove it or pass --force to replace it")
    require_writable(folder / "bundle.json")


def _say_next(bundle: Bundle) -> None:
    """Print commands that try the bundle."""
    from fewstep.cli.verdicts import use_command
    from fewstep.runtime.condition import ClassCondition

    say_next(command("verify", bundle.path), use_command(bundle))
    condition = bundle.manifest.model.condition
    if not isinstance(condition, ClassCondition) and condition.encoder is None:
        shape = f"[B, {condition.length}, {condition.width}]"
        say_note(f"generate takes states of texts: --text-file FILE.npy, an array {shape}")
