"""aMUSEd's networks, and the text encoders of it and of AdaNAT's CC3M model.

Sizes as in the ``config.json`` files of amused/amused-256, amused/amused-512 and
laion/CLIP-ViT-bigG-14-laion2B-39B-b160k on the Hugging Face Hub. Head counts, ``sample_size``,
activations and the end of a text leave no trace in the shapes; a folder of diffusers or
transformers says them in the ``config.json`` beside the weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fewstep.export.models.amused_vq import VQModel
from fewstep.export.models.clip_text import CLIPTextModelWithProjection
from fewstep.export.models.uvit2d import UVit2DModel
from fewstep.export.parts import Kind, Part, Preset
from fewstep.export.wrappers import Wanted


def constructor_arguments(kind: Kind, config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments in a ``config.json``, without what else stands there.

    Args:
        kind: the class of the network.
        config: of its folder. That of a whole CLIP model has the text encoder's in
            ``text_config``, and the width of the projection beside it.
    """
    said = dict(config)
    if "text_config" in said:
        shared = {name: said[name] for name in ("projection_dim",) if name in said}
        said = {**said["text_config"], **shared}
    known = inspect.signature(kind).parameters
    return {name: value for name, value in said.items() if name in known}


PARTS: Mapping[Kind, Part] = {
    UVit2DModel: Part(
        "aMUSEd transformer",
        "transformer in the folder of the pipeline",
        sizes=(
            Preset("aMUSEd 256×256", {"sample_size": 16}),
            Preset("aMUSEd 512×512", {"downsample": True, "upsample": True, "sample_size": 32}),
        ),
        form="amused",
        settings=(
            "hidden_size",
            "use_bias",
            "cond_embed_dim",
            "micro_cond_encode_dim",
            "micro_cond_embed_dim",
            "encoder_hidden_size",
            "vocab_size",
            "codebook_size",
            "in_channels",
            "block_out_channels",
            "num_res_blocks",
            "downsample",
            "upsample",
            "block_num_heads",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "layer_norm_eps",
            "ln_elementwise_affine",
            "sample_size",
        ),
        settings_beside="micro_cond_embed_dim",
    ),
    VQModel: Part(
        "aMUSEd tokenizer (VQ)",
        "vqvae in the folder of the pipeline",
        sizes=(
            Preset(
                "aMUSEd VQ f16, 8192 codes",
                {
                    "block_out_channels": [128, 256, 256, 512, 768],
                    "down_block_types": ["DownEncoderBlock2D"] * 5,
                    "up_block_types": ["UpDecoderBlock2D"] * 5,
                    "latent_channels": 64,
                    "layers_per_block": 2,
                    "num_vq_embeddings": 8192,
                    "mid_block_add_attention": False,
                    "lookup_from_codebook": True,
                    "force_upcast": True,
                },
            ),
        ),
        form="amused",
        settings=(
            "act_fn",
            "block_out_channels",
            "down_block_types",
            "up_block_types",
            "latent_channels",
            "layers_per_block",
            "mid_block_add_attention",
            "norm_num_groups",
            "norm_type",
            "num_vq_embeddings",
            "vq_embed_dim",
        ),
        settings_beside="num_vq_embeddings",
        rules=Wanted(frozenset(), unused=("encoder.", "quant_conv.")),
    ),
    CLIPTextModelWithProjection: Part(
        "CLIP text encoder",
        "text_encoder in the folder of the pipeline, or --text-encoder",
        sizes=(
            Preset(
                "CLIP ViT-L/14 (aMUSEd)",
                {
                    "hidden_size": 768,
                    "intermediate_size": 3072,
                    "projection_dim": 768,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 12,
                    "eos_token_id": 2,
                },
            ),
            Preset(
                "OpenCLIP ViT-bigG/14 (AdaNAT, CC3M)",
                {
                    "hidden_size": 1280,
                    "intermediate_size": 5120,
                    "projection_dim": 1280,
                    "num_hidden_layers": 32,
                    "num_attention_heads": 20,
                    "hidden_act": "gelu",
                },
            ),
        ),
        form="amused",
        settings=(
            "hidden_act",
            "hidden_size",
            "intermediate_size",
            "layer_norm_eps",
            "max_position_embeddings",
            "num_attention_heads",
            "num_hidden_layers",
        ),
        settings_beside="max_position_embeddings",
        rules=Wanted(
            frozenset(),
            # Of a whole CLIP model; the projection where nothing reads it.
            beside=r"^(vision_model\.|visual_projection\.|logit_scale$|text_projection\.)",
        ),
    ),
}
"""By the class of the network."""
