"""What ``fewstep calibrate decoder`` is asked for, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.decoders import DECODER, DecoderName, decoder_graph
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.files import require_writable, require_writable_bundle
from fewstep.runtime.records import found_wrong


@dataclass(frozen=True)
class DecoderOptions:
    """Options of the command.

    ``images``: rollouts to learn from, ``held_out`` further ones to be judged by; image i has the
    seed ``seed + i``. ``settings``: of these rollouts; what is not there are the bundle's defaults.
    ``text``: states or ids of texts, taken in turns, for text-conditional bundles. ``smaller``: how
    many times fewer operations there are at least. ``batch``: images of an update. ``weights``:
    where they are kept too; ``None`` is beside the bundle.
    """

    bundle: Path
    name: str = "small"
    images: int = 1_000
    held_out: int = 100
    updates: int = 3_000
    batch: int = 16
    smaller: float = 8.0
    learning_rate: float = 2e-3
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    text: Array | None = None
    weights: Path | None = None
    force: bool = False
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0

    @property
    def weights_file(self) -> Path:
        """Where the weights are kept beside the bundle."""
        folder = self.bundle.resolve()
        return self.weights or folder.with_name(
            f"{folder.name}.{decoder_graph(self.name)}.safetensors"
        )


def check(options: DecoderOptions, bundle: Bundle) -> None:
    """Refuse what cannot end well.

    Raises:
        CalibrationError: options that do not fit, or a model that has one decoder.
        OutputError: the bundle or the place of the weights cannot be written.
    """
    for name in ("images", "held_out", "updates", "batch"):
        if getattr(options, name) < 1:
            raise CalibrationError(f"{name} must be at least 1, got {getattr(options, name)}")
    if not options.smaller > 1:
        raise CalibrationError(f"smaller must be above 1, got {options.smaller:g}")
    if not 0 < options.learning_rate < 1:
        raise CalibrationError(f"learning_rate must be in 0 … 1, got {options.learning_rate:g}")
    try:
        TypeAdapter(DecoderName).validate_python(options.name)
    except ValidationError as error:
        raise CalibrationError(f"{found_wrong(error, 'name')}, got {options.name!r}") from error
    model = bundle.manifest.model
    if "decoder" not in type(model.defaults).model_fields or DECODER not in bundle.manifest.graphs:
        raise CalibrationError(f"{bundle.path}: models of {model.kind} have one decoder alone")
    if options.name in model.decoders and not options.force:
        raise CalibrationError(
            f"{bundle.path} has a decoder '{options.name}' already: pass --force to replace it, or "
            "another --name"
        )
    require_writable_bundle(bundle.path)
    require_writable(options.weights_file)
