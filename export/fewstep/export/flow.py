"""From checkpoints to a bundle, whatever the form.

Read the checkpoints → export and check each graph → record golden rollouts with PyTorch → take a
second look at the images → write the manifest → rename the finished folder into place. An export
that fails or is interrupted leaves nothing behind.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fewstep import __version__
from fewstep.export.config import ExportConfig, read_config
from fewstep.export.decoder_file import with_decoder
from fewstep.export.golden import GOLDEN_FILE, IMAGES, record
from fewstep.export.onnx_graph import export_graph
from fewstep.export.second_look import second_look, write_contact_sheet
from fewstep.export.source import Exportable, Source, sources
from fewstep.export.torch_engine import TorchEngine
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.errors import CheckpointError, RequestError, choose
from fewstep.runtime.examples import example_request
from fewstep.runtime.families import Model
from fewstep.runtime.files import replacing_folder, sha256
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import MANIFEST_NAME, CheckpointInfo, Manifest, Provenance
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.records import FileInfo
from fewstep.runtime.settings import problems, settings_of

CONFIG = "config"
SMALL_DECODER = "small_decoder"
COMMON = (CONFIG, SMALL_DECODER)
"""Options that all forms have beside their own."""

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export(
    form: str,
    given: Mapping[str, Any],
    out: Path,
    *,
    overwrite: bool = False,
    command: str = "",
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda text: None,
    contact_sheet: Path | None = None,
) -> Bundle:
    """Export checkpoints to a bundle at ``out``.

    Args:
        form: name of the published form: ``adanat``, ``maskgit`` or one that was registered.
        given: options of the form by name, as :class:`~fewstep.export.source.Option` says,
            ``config`` for a ``--config`` file, and ``small_decoder`` for what ``fewstep calibrate
            decoder`` wrote; what is ``None``, false or empty is not given.
        out: the bundle folder to make.
        overwrite: replace an existing folder once the new one is whole.
        command: what was typed, for the provenance record.
        progress: called as each stage begins.
        note: called with what was assumed, preferred or found odd, a line each.
        contact_sheet: where to write a picture of what the bundle makes.

    Raises:
        CheckpointError: a checkpoint, the configuration or an option does not fit.
        ExportError: a graph cannot be exported or disagrees with PyTorch.
        OutputError: ``out`` exists or cannot be written.
    """
    known = sources()
    if form not in known:
        raise CheckpointError(choose("form", form, known))
    source, given = known[form], {name: value for name, value in given.items() if value}
    _check_given(source, given)
    config_file: Path | None = given.pop(CONFIG, None)
    small_decoder: Path | None = given.pop(SMALL_DECODER, None)
    config = read_config(config_file)
    with replacing_folder(out, overwrite=overwrite, marker=MANIFEST_NAME) as folder:
        progress("reading checkpoints", 0.0)
        exportable = _loaded(source, given, config)
        if small_decoder is not None:
            exportable = with_decoder(exportable, small_decoder)
        _check_settings(exportable, config)
        for text in exportable.notes:
            note(text)
        for name, content in exportable.files.items():
            (folder / name).write_bytes(content)
        engines, graphs = {}, {}
        for name, graph in exportable.graphs.items():
            progress(f"exporting {name}", 0.0)
            graphs[name] = export_graph(name, graph, folder)
            engines[name] = TorchEngine(name, graph.module, graphs[name])
        checkpoints = dict(exportable.checkpoints)
        if config_file is not None:
            checkpoints[CONFIG] = config_file
        manifest = Manifest(
            family=form,
            name=config.name or exportable.name,
            model=exportable.model,
            graphs=graphs,
            files={path.name: _file_info(path) for path in sorted(folder.iterdir())},
            provenance=_provenance(command, checkpoints),
        )
        with Generator(Bundle(folder, manifest), CpuDevice(), engines, max_batch=IMAGES) as made:
            progress("recording golden rollouts", 0.0)
            record(made)
            progress("looking at images", 0.0)
            ranged = any(option.name == "pixel_range" for option in source.options)
            for text in second_look(made, exportable.graphs, ranged=ranged):
                note(text)
            if contact_sheet is not None:
                write_contact_sheet(made, contact_sheet)
        progress("writing manifest", 0.0)
        files = {**manifest.files, GOLDEN_FILE: _file_info(folder / GOLDEN_FILE)}
        manifest = manifest.model_copy(update={"golden": GOLDEN_FILE, "files": files})
        text = manifest.model_dump_json(indent=2) + "\n"
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
    return Bundle(out, manifest)


def _loaded(source: Source, given: Mapping[str, Any], config: ExportConfig) -> Exportable:
    try:
        return source.load(given, config)
    except ValidationError as error:  # numbers that no manifest takes, such as 0 codes
        raise CheckpointError(f"the models cannot be described: {problems(error)}") from error


def _check_given(source: Source, given: Mapping[str, Any]) -> None:
    """Refuse options that the form does not have, and ask for those that it needs."""
    known = {option.name: option for option in source.options}
    for name in given:
        if name not in (*known, *COMMON):
            raise CheckpointError(choose(f"option of {source.name}", name, [*known, *COMMON]))
    needed = [each.flag for each in source.options if each.required and each.name not in given]
    if needed:
        raise CheckpointError(f"{source.name} needs {', '.join(needed)}")


def _check_settings(exportable: Exportable, config: ExportConfig) -> None:
    """Refuse defaults and presets that no generation could use, before the long work."""
    info, said = exportable.model, {"the configuration's defaults": dict[str, str]()}
    said |= {f"--config: preset {name!r}": {"preset": name} for name in config.presets}
    for what, settings in said.items():
        try:
            example_request(Model(info, graphs={}), settings_of(info.defaults, settings))
        except RequestError as error:
            raise CheckpointError(f"{what}: {error}") from error


def _file_info(path: Path) -> FileInfo:
    return FileInfo(bytes=path.stat().st_size, sha256=sha256(path))


def _provenance(command: str, checkpoints: Mapping[str, Path]) -> Provenance:
    tools = {tool: importlib.metadata.version(tool) for tool in _TOOLS}
    return Provenance(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
        command=command,
        tools={"python": platform.python_version(), "fewstep": __version__, **tools},
        checkpoints={
            name: CheckpointInfo(file=path.name, sha256=sha256(path))
            for name, path in checkpoints.items()
        },
    )
