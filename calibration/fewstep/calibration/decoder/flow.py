"""``fewstep calibrate decoder``: options → rollouts → trained decoder in the bundle."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from fewstep import __version__
from fewstep.build.graph_work import flops_of_model, graph_work
from fewstep.calibration.added_graph import Exported, add_graph, exported
from fewstep.calibration.decoder.examples import examples
from fewstep.calibration.decoder.options import DecoderOptions, check
from fewstep.calibration.decoder.training import psnr_of, student, train
from fewstep.export.decoder_file import DistilledDecoder, graph_of, save_decoder
from fewstep.export.models.small_decoder import SmallDecoder
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.decoders import DECODER, DecoderInfo, decoder_graph
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CalibrationError, OutputError
from fewstep.runtime.families import family_of, model_of
from fewstep.runtime.generator import Generator
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.settings import settings_of

_TOOLS = ("torch", "onnx", "numpy")
_ONE = {"batch": 1}


@dataclass(frozen=True)
class Distilled:
    """What came of it: the decoder's name and record, its PSNR before it learned anything, and the
    file of its weights. ``engines``: whether the bundle has engines, which now lack one."""

    name: str
    info: DecoderInfo
    untrained_psnr_db: float
    weights: Path
    engines: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "info": self.info.model_dump(mode="json"),
            "untrained_psnr_db": self.untrained_psnr_db,
            "weights": str(self.weights),
        }


def distill(
    options: DecoderOptions, *, command: str = "", progress: Progress = no_progress
) -> Distilled:
    """Distil a small decoder from a bundle's own, and add it.

    An interruption leaves the bundle as it was.

    Args:
        options: what is asked for.
        command: what was typed, for the record.
        progress: called with what is being done.

    Raises:
        CalibrationError: options that do not fit, a decoder that reads no map of the image, or a
            training that broke.
        RequestError: settings that the bundle cannot serve, or no text for a text-conditional one.
        BundleError: the bundle is damaged, or its operations cannot be counted.
        EngineError: the backend refuses a graph.
        MissingDependencyError: a package is not installed.
        OutputError: the bundle or the file of the weights cannot be written.
    """
    bundle = Bundle.read(options.bundle)
    check(options, bundle)
    if options.threads:
        torch.set_num_threads(options.threads)
    progress("counting operations", 0.0)
    full_flops = graph_work(bundle, DECODER, [_ONE]).flops_at(_ONE)
    budget = int(full_flops / options.smaller)
    with Generator.open(
        bundle,
        backend=options.backend,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
    ) as generator:
        make = functools.partial(examples, generator, settings=options.settings, text=options.text)
        # Before the long work: is there a student at all?
        student(bundle, make(1, seed=options.seed), budget, options.seed)
        known = make(options.images, seed=options.seed, progress=progress)
        held_out = make(
            options.held_out,
            seed=options.seed + options.images,
            earlier=False,
            what="making held-out rollouts",
            progress=progress,
        )
    network = student(bundle, known, budget, options.seed)
    untrained = psnr_of(network, held_out)
    train(
        network,
        known,
        updates=options.updates,
        batch=options.batch,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device=_device(options.device),
        progress=progress,
    )
    progress("adding the decoder to the bundle", 0.0)
    graph = _exported(bundle, options.name, network, known.inputs)
    info = DecoderInfo(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
        command=command,
        tools=_tools(),
        full_sha256=bundle.graph_sha256(DECODER),
        tokenizer_sha256=_tokenizer(bundle),
        rollouts=options.images,
        settings=_complete(bundle, options),
        seed=options.seed,
        updates=options.updates,
        held_out=options.held_out,
        psnr_db=round(psnr_of(network, held_out), 3),
        flops=flops_of_model(onnx.load_from_string(graph.content), graph.info, _ONE),
        full_flops=full_flops,
    )
    save_decoder(options.weights_file, DistilledDecoder(options.name, network, info))
    _add(bundle, options, graph, info)
    engines = bool(bundle.manifest.engines)
    return Distilled(options.name, info, untrained, options.weights_file, engines)


def _device(wanted: str) -> torch.device:
    """Where the student learns: a GPU where there is one, unless the CPU is asked for."""
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda" if wanted == "auto" else wanted)


def _tools() -> dict[str, str]:
    versions = {tool: importlib.metadata.version(tool) for tool in _TOOLS}
    return {"python": platform.python_version(), "fewstep": __version__, **versions}


def _tokenizer(bundle: Bundle) -> str | None:
    """The checkpoint that the full decoder came from, where the bundle says it."""
    found = bundle.manifest.provenance.checkpoints.get("tokenizer")
    return None if found is None else found.sha256


def _complete(bundle: Bundle, options: DecoderOptions) -> dict[str, Any]:
    """Settings of the rollouts, as JSON has them."""
    model = model_of(bundle)
    chosen = settings_of(model.info.defaults, options.settings)
    found: dict[str, Any] = json.loads(
        json.dumps(family_of(model.info.kind).complete(model, chosen))
    )
    return found


def _exported(bundle: Bundle, name: str, network: SmallDecoder, inputs: Array) -> Exported:
    (tensor,) = bundle.graph(DECODER).inputs
    example = torch.from_numpy(np.resize(inputs, (2, *inputs.shape[1:])))
    return exported(decoder_graph(name), graph_of(network, {tensor: example}))


def _add(bundle: Bundle, options: DecoderOptions, graph: Exported, info: DecoderInfo) -> None:
    """Add the decoder to the bundle as it is after the training.

    Raises:
        CalibrationError: it does not belong into the bundle any more.
        OutputError: the bundle cannot be written; the weights are kept.
    """
    kept = f"the decoder is kept in {options.weights_file}"
    try:
        with Bundle.locked(bundle.path) as now:
            if now.graph_sha256(DECODER) != info.full_sha256:
                raise CalibrationError(f"{bundle.path} has another decoder by now; {kept}")
            decoders = now.manifest.model.model_dump()["decoders"]
            described = {"decoders": {**decoders, options.name: info.model_dump()}}
            add_graph(now, graph, DECODER, described)
    except OutputError as error:
        raise OutputError(f"{error}; {kept}") from error
