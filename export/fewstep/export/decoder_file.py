"""Files of small decoders: weights in half precision, and what the bundle is told of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fewstep.export import checkpoint, layout
from fewstep.export.models.small_decoder import DecoderShape, SmallDecoder
from fewstep.export.source import Exportable, Graph
from fewstep.runtime.decoders import DECODER, DecoderInfo, DecoderName, decoder_graph
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.files import replacing, sha256

KEY = "fewstep_decoder"
"""Of the record in the metadata of such a file."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: DecoderName
    shape: DecoderShape
    info: DecoderInfo


@dataclass(frozen=True)
class DistilledDecoder:
    """A small decoder: its name, its network, and what the manifest says of it."""

    name: str
    network: SmallDecoder
    info: DecoderInfo


def save_decoder(path: Path, decoder: DistilledDecoder) -> None:
    """Write a safetensors file that ``fewstep export --small-decoder`` reads.

    Raises:
        OutputError: the folder is not writable, or the disk is full.
    """
    from safetensors.torch import save

    half = {key: value.half().contiguous() for key, value in decoder.network.state_dict().items()}
    record = _Record(name=decoder.name, shape=decoder.network.shape, info=decoder.info)
    with replacing(path) as temporary:
        temporary.write_bytes(save(half, {KEY: record.model_dump_json()}))


def load_decoder(path: Path) -> DistilledDecoder:
    """Read such a file.

    Raises:
        CheckpointError: absent, damaged, or no small decoder.
    """
    content = checkpoint.open_checkpoint(path)
    try:
        record = _Record.model_validate_json(json.dumps(content.metadata[KEY]))
    except (ValidationError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no small decoder; expected a file that fewstep calibrate decoder wrote"
        ) from error
    state = {key: value for key, value in content.tree.items() if isinstance(value, Tensor)}
    network = SmallDecoder(record.shape)
    layout.load_into(network, state, path)
    return DistilledDecoder(record.name, network, record.info)


def graph_of(network: SmallDecoder, inputs: Mapping[str, Tensor]) -> Graph:
    """What is exported of a small decoder.

    Args:
        network: it.
        inputs: an example of two images, by the name that the full decoder's input has.
    """
    return Graph(network.eval(), inputs, ("image",), unclamped=network.unclamped)


def with_decoder(exportable: Exportable, path: Path) -> Exportable:
    """A model with a small decoder from a file beside its own.

    Raises:
        CheckpointError: the file holds none, one of another tokenizer, or one that does not fit.
    """
    decoder, full = load_decoder(path), exportable.graphs.get(DECODER)
    if full is None or "decoder" not in type(exportable.model.defaults).model_fields:
        raise CheckpointError(
            f"models of {exportable.model.kind} have one decoder alone: leave out {path}"
        )
    tokenizer = exportable.checkpoints.get("tokenizer")
    known = decoder.info.tokenizer_sha256
    if tokenizer is not None and known is not None and sha256(tokenizer) != known:
        raise CheckpointError(
            f"{path} was distilled from the decoder of another tokenizer than {tokenizer}; make "
            "one of this with: fewstep calibrate decoder"
        )
    _require_fit(decoder.network, full, path)
    graph = graph_of(decoder.network, full.inputs)
    model = exportable.model
    return replace(
        exportable,
        model=model.model_copy(update={"decoders": {**model.decoders, decoder.name: decoder.info}}),
        graphs={**exportable.graphs, decoder_graph(decoder.name): graph},
        checkpoints={**exportable.checkpoints, "small_decoder": path},
    )


def _require_fit(network: nn.Module, full: Graph, path: Path) -> None:
    """Raise ``CheckpointError`` unless both draw images of one size from the same input."""
    inputs = tuple(full.inputs.values())
    wanted = list(full.module(*inputs).shape)
    try:
        found = list(network(*inputs).shape)
    except (RuntimeError, IndexError, ValueError):  # whatever layer is the first to refuse it
        found = []
    if found != wanted:
        raise CheckpointError(f"{path} does not draw what the decoder of this model reads")
