"""TiTok's networks (1d-tokenizer), in the sizes that the authors publish them.

Sizes as in ``configs/infer/TiTok/`` of the official repository. Head counts, ``use_l2_norm`` and
how the authors sample leave no trace in the shapes, so other sizes need ``--config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.export.models.image_bert import ImageBert, UViTBert
from fewstep.export.models.titok import TiTok
from fewstep.export.parts import Kind, Part, Preset
from fewstep.export.wrappers import Wanted

_IMAGE_SEQ_LEN = "${model.vq_model.num_latent_tokens}"
"""How the authors' configurations say ``image_seq_len``."""


def constructor_arguments(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the generator and of the tokenizer, of an official configuration.

    Args:
        config: a file of ``configs/infer/TiTok/``, or ``config.json`` beside a
            ``model.safetensors``. Without ``model.generator`` it is a tokenizer's alone.

    Returns:
        those of :class:`ImageBert` or :class:`UViTBert`, as their ``model_type`` says, empty for a
        tokenizer's; and those of :class:`TiTok`.
    """
    tokenizer = dict(config["model"]["vq_model"])
    generator = dict(config["model"].get("generator", {}))
    if generator:
        if generator.get("image_seq_len") == _IMAGE_SEQ_LEN:
            generator["image_seq_len"] = tokenizer["num_latent_tokens"]
        generator["codebook_size"] = tokenizer["codebook_size"]
    preprocessing = config.get("dataset", {}).get("preprocessing", {})
    if "crop_size" in preprocessing:
        tokenizer["crop_size"] = preprocessing["crop_size"]
    return generator, tokenizer


def _generator(
    name: str, image_seq_len: int, sizes: tuple[int, int, int], sampling: Mapping[str, Any]
) -> Preset:
    hidden_size, layers, intermediate_size = sizes
    return Preset(
        f"TiTok-{name} generator, ImageNet 256×256",
        {
            "codebook_size": 4096,
            "image_seq_len": image_seq_len,
            "condition_num_classes": 1000,
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "intermediate_size": intermediate_size,
            **sampling,
        },
    )


def _sampling(steps: int, temperature: float, guidance: float, decay: str) -> Mapping[str, Any]:
    """As the authors evaluate a model."""
    return {
        "num_steps": steps,
        "randomize_temperature": temperature,
        "guidance_scale": guidance,
        "guidance_decay": decay,
    }


def _tokenizer(name: str, encoder: str, decoder: str, tokens: int, *, legacy: bool) -> Preset:
    codes, width = (4096, 12) if legacy else (8192, 64)
    return Preset(
        f"TiTok-{name}, ImageNet 256×256",
        {
            "codebook_size": codes,
            "token_size": width,
            "num_latent_tokens": tokens,
            "vit_enc_model_size": encoder,
            "vit_dec_model_size": decoder,
            "use_l2_norm": legacy,
            "is_legacy": legacy,
            "finetune_decoder": legacy,
        },
    )


# Not image_seq_len: beside published weights it is said by _IMAGE_SEQ_LEN, and shapes have it.
_OF_GENERATORS = ("codebook_size", "condition_num_classes", "hidden_size", "num_hidden_layers") + (
    "num_attention_heads",
    "intermediate_size",
)

PARTS: Mapping[Kind, Part] = {
    ImageBert: Part(
        "TiTok generator (BERT)",
        "--transformer",
        sizes=(
            _generator("L-32", 32, (768, 24, 3072), _sampling(8, 9.5, 4.5, "linear")),
            _generator("B-64", 64, (768, 24, 3072), _sampling(8, 11.0, 3.0, "linear")),
        ),
        form="titok",
        settings=_OF_GENERATORS,
        settings_beside="condition_num_classes",
    ),
    UViTBert: Part(
        "TiTok generator (U-ViT)",
        "--transformer",
        sizes=(
            _generator("S-128", 128, (1024, 20, 4096), _sampling(64, 2.8, 6.9, "power-cosine")),
        ),
        form="titok",
        settings=_OF_GENERATORS,
        settings_beside="condition_num_classes",
    ),
    TiTok: Part(
        "TiTok tokenizer",
        "--tokenizer",
        sizes=(
            _tokenizer("L-32", "large", "large", 32, legacy=True),
            _tokenizer("B-64", "base", "base", 64, legacy=True),
            _tokenizer("S-128", "small", "small", 128, legacy=True),
            _tokenizer("BL-64, 8192 codes", "base", "large", 64, legacy=False),
            _tokenizer("BL-128, 8192 codes", "base", "large", 128, legacy=False),
            _tokenizer("SL-256, 8192 codes", "small", "large", 256, legacy=False),
        ),
        form="titok",
        settings=("codebook_size", "token_size", "num_latent_tokens", "use_l2_norm", "is_legacy")
        + ("finetune_decoder", "quantize_mode", "crop_size")
        + ("vit_enc_model_size", "vit_dec_model_size", "vit_enc_patch_size", "vit_dec_patch_size"),
        settings_beside="vit_dec_model_size",
        rules=Wanted(frozenset(), unused=("encoder.",)),
    ),
}
"""By the class of the network."""
