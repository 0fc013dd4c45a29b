"""1d-tokenizer: MaskGIT generators of the tokens of TiTok or of the MaskGIT VQGAN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.export import masked_form, presets
from fewstep.export.checkpoint import open_checkpoint
from fewstep.export.config import ExportConfig
from fewstep.export.layout import require_agreement
from fewstep.export.masked_form import Checkpoints, Form, Networks
from fewstep.export.models import VQModel
from fewstep.export.models.image_bert import ImageBert, MaskedGenerator, UViTBert
from fewstep.export.models.titok import TiTok
from fewstep.export.source import Exportable
from fewstep.export.wrappers import tensor_keys
from fewstep.runtime.families.masked.rules import Rules

# Of ``generate`` in modeling/maskgit.py.
_RULES = Rules(confidence="logit", ties="masked", precision="float64", guidance_at="before")
_ANNEALING = (1.3, 0.5)  # 0.5 + 0.8·(1 − r), as sample_imagenet_titok.py samples
_POWER = 3.0  # of guidance_decay power-cosine, where nothing else is said
_OF_UVIT = "mid_block.norm1.weight"
_OF_VQGAN = "decoder.up.0.block.0.norm1.weight"


def _form(sampling: Mapping[str, Any]) -> Form:
    """How a generator is sampled.

    Args:
        sampling: ``num_steps``, ``randomize_temperature``, ``guidance_scale`` and
            ``guidance_decay``, in the official names; those that are known.
    """
    scale = float(sampling.get("guidance_scale", 3.0))
    noise = (float(sampling.get("randomize_temperature", 4.5)), 0.0)
    decay = sampling.get("guidance_decay", "constant")
    power = _POWER if decay == "power-cosine" else 0.0
    guidance = {"constant": (scale, scale), "linear": (0.0, scale)}
    return Form(
        _RULES,
        at_least_one=True,
        defaults={
            "steps": sampling.get("num_steps", 8),
            "schedule": "arccos",
            # Its cosine ends at unconditional + scale·(conditional − unconditional).
            "guidance": guidance.get(decay, (0.0, max(0.0, scale - 1))),
            "guidance_power": power,
            "masking_temperature": noise,
            "sampling_temperature": noise,
            "softmax_temperature": _ANNEALING,
        },
    )


def load(files: Checkpoints, config: ExportConfig) -> Exportable:
    """Read the files.

    Raises:
        CheckpointError: a file or the configuration does not fit.
    """
    masked_form.check_config("1d-tokenizer", config, _form({}))
    tokenizer, decoder, notes = _tokenizer(files, config)
    transformer, found = _generator(files.transformer, config)
    require_agreement(
        (
            ("codebook size", transformer.codebook_size, decoder.codes, "tokenizer"),
            ("tokens", transformer.num_tokens, decoder.tokens, "tokenizer"),
        )
    )
    networks = Networks(
        transformer,
        tokenizer,
        grid=decoder.grid,
        codebook_size=transformer.codebook_size,
        width=transformer.hidden_size,
        image_size=(decoder.pixels, decoder.pixels),
        classes=transformer.condition_num_classes + 1,
        notes=(*notes, *found),
    )
    return masked_form.exportable(files, config, _form(transformer.sampling), networks)


class _Decoded:
    """What a tokenizer says of itself: codes, tokens, their grid, pixels along a side."""

    def __init__(self, model: TiTok | VQModel) -> None:
        if isinstance(model, TiTok):
            self.codes, self.tokens = model.codebook_size, model.num_tokens
            self.grid, self.pixels = (1, model.num_tokens), model.resolution
        else:
            side = model.resolution // model.downsampling
            self.codes = model.quantize.embedding.num_embeddings
            self.tokens, self.grid, self.pixels = side**2, (side, side), model.resolution


def _tokenizer(
    files: Checkpoints, config: ExportConfig
) -> tuple[nn.Module, _Decoded, tuple[str, ...]]:
    kind: Any = VQModel if _has(files.tokenizer, _OF_VQGAN) else TiTok
    model, read = presets.read(kind, files.tokenizer, config.tokenizer, whole=files.encoder)
    return model, _Decoded(model), tuple(f"tokenizer: {note}" for note in read.notes)


def _generator(path: Path, config: ExportConfig) -> tuple[MaskedGenerator, tuple[str, ...]]:
    kind: Any = UViTBert if _has(path, _OF_UVIT) else ImageBert
    model, read = presets.read(kind, path, config.transformer)
    return model, tuple(f"transformer: {note}" for note in read.notes)


def _has(path: Path, key: str) -> bool:
    """Whether a file has a tensor of this name, in any wrapping."""
    return any(
        each == key or each.endswith(f".{key}") for each in tensor_keys(open_checkpoint(path))
    )
