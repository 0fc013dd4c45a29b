"""Checkpoints of other systems, recognised by keys that no other system has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fewstep.export.source import sources


@dataclass(frozen=True)
class Signature:
    """How a system's files are recognised.

    Args:
        name: what the file is, after "is".
        keys: ends of keys that all are there.
        form: what ``fewstep export`` calls it, once it can; the form need not exist yet.
        without: ends of keys none of which is there.
    """

    name: str
    keys: tuple[str, ...]
    form: str = ""
    without: tuple[str, ...] = ()


_LDM_ATTENTION = "decoder.mid.attn_1.q.weight"

SIGNATURES = (
    Signature(
        "a VAR transformer",
        ("word_embed.weight", "lvl_embed.weight", "head_nm.ada_lin.1.weight"),
        "var",
    ),
    Signature("VAR's multi-scale tokenizer", ("quantize.quant_resi.qresi_ls.0.weight",), "var"),
    Signature("VAR's multi-scale tokenizer", ("quantize.quant_resi.qresi.weight",), "var"),
    Signature("VAR's multi-scale tokenizer", ("quantize.quant_resi.0.weight",), "var"),
    Signature(
        "a MAR model", ("encoder_pos_embed_learned", "diffloss.net.input_proj.weight"), "mar"
    ),
    Signature(
        "a MaskGen model with a diffusion head (1d-tokenizer)",
        ("text_emb.weight", "diffloss.net.input_proj.weight"),
        "maskgen",
    ),
    Signature(
        "a MaskGen model (1d-tokenizer)", ("text_embed_proj.weight", "lm_head.weight"), "maskgen"
    ),
    Signature("a MaskGen model (1d-tokenizer)", ("text_embed_proj.weight", "pos_embed"), "maskgen"),
    Signature(
        "an RAR model (1d-tokenizer)", ("target_aware_pos_embed", "timesteps_embeddings"), "rar"
    ),
    Signature(
        "a TiTok tokenizer (1d-tokenizer)",
        ("latent_tokens", "encoder.latent_token_positional_embedding"),
        "titok",
    ),
    Signature(
        "a TiTok generator (1d-tokenizer's MaskGIT)",
        (
            "embeddings.token_type_embeddings.weight",
            "encoder.layer.0.attention.self.query.weight",
            "lm_head.weight",
        ),
        "titok",
    ),
    Signature(
        "a TiTok generator (1d-tokenizer's U-ViT MaskGIT)",
        ("pos_embed", "in_blocks.0.attn.qkv.weight", "embeddings.weight", "lm_head.weight"),
        "titok",
    ),
    Signature(
        "a Halton-MaskGIT transformer",
        ("tok_emb.weight", "transformer.layers.0.attn.wq.weight", "last_norm.mlp.1.weight"),
        "halton",
    ),
    Signature(
        "a LlamaGen tokenizer (also Halton-MaskGIT's)",
        ("decoder.conv_blocks.0.res.0.conv1.weight", "quantize.embedding.weight"),
        "halton",
    ),
    Signature(
        "a LlamaGen transformer",
        ("layers.0.attention.wqkv.weight", "tok_embeddings.weight"),
        "llamagen",
    ),
    Signature(
        "a maskgit-torch transformer",
        ("tok_emb.weight", "blocks.0.MultiHeadAttention.in_proj_weight"),
        "maskgit-torch",
    ),
    Signature(
        "a maskgit-torch tokenizer",
        ("quantizer.codebook.weight", "decoder.res_blocks.0.0.conv0.weight"),
        "maskgit-torch",
    ),
    Signature(
        "a Meissonic transformer",
        ("single_transformer_blocks.0.proj_mlp.weight", "mlm_layer.conv2.weight"),
        "meissonic",
    ),
    Signature(
        "an aMUSEd transformer",
        ("transformer_layers.0.attn1.to_q.weight", "mlm_layer.conv2.weight"),
        "amused",
    ),
    Signature(
        "an open-muse transformer",
        ("transformer_layers.0.attention.query.weight", "transformer_layers.0.ffn.wi_0.weight"),
        "open-muse",
    ),
    Signature(
        "a Flux or Stable Diffusion 3 transformer",
        ("transformer_blocks.0.attn.add_q_proj.weight",),
    ),
    Signature("a Stable Diffusion or LDM model", ("diffusion_model.input_blocks.0.0.weight",)),
    Signature(
        "a diffusers U-Net",
        ("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"),
        without=("decoder.conv_in.weight",),
    ),
    Signature(
        "a diffusers VQModel",
        ("decoder.up_blocks.0.resnets.0.conv1.weight", "quantize.embedding.weight"),
        "amused",
    ),
    Signature("a diffusers AutoencoderKL", ("decoder.up_blocks.0.resnets.0.conv1.weight",)),
    Signature(
        "a taming-transformers VQGAN",
        (_LDM_ATTENTION, "quantize.embedding.weight", "post_quant_conv.weight"),
    ),
    Signature(
        "a taming-transformers VQGAN with a Gumbel codebook",
        (_LDM_ATTENTION, "quantize.embed.weight"),
    ),
    Signature(
        "a KL autoencoder (LDM's, such as MAR's KL-16)",
        (_LDM_ATTENTION, "post_quant_conv.weight"),
        "mar",
    ),
    Signature(
        "a DiT or SiT model", ("final_layer.adaLN_modulation.1.weight", "x_embedder.proj.weight")
    ),
    Signature("a CLIP model", ("text_model.encoder.layers.0.self_attn.q_proj.weight",)),
    Signature("a CLIP model", ("visual.conv1.weight", "token_embedding.weight")),
    Signature("a CLIP model", ("visual.class_embedding", "token_embedding.weight")),
    Signature("a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
)
"""The first that fits counts, so that those with more telling keys come first."""


def recognise(keys: Collection[str], own: str = "") -> str:
    """What another system's checkpoint is and what takes it, as an end of a sentence, or ``""``.

    Args:
        keys: of all tensors of the file.
        own: the form that is being exported, whose files are no other system's.
    """
    found = next((each for each in SIGNATURES if _fits(each, keys)), None)
    if found is None or (own and found.form == own):
        return ""
    if found.form in sources():
        return f"{found.name}: fewstep export {found.form} takes it"
    return f"{found.name}, which fewstep does not support yet"


def _fits(signature: Signature, keys: Collection[str]) -> bool:
    def there(end: str) -> bool:
        return any(key == end or key.endswith(f".{end}") for key in keys)

    return all(map(there, signature.keys)) and not any(map(there, signature.without))
