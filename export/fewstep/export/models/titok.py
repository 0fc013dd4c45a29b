"""TiTok: images as short sequences of tokens that have no place in the image.

Same state-dict keys as ``modeling/titok.py``, ``modeling/modules/blocks.py`` and
``modeling/modules/maskgit_vqgan.py`` of the official 1d-tokenizer repository
(bytedance/1d-tokenizer). Constructor arguments are the entries of ``model.vq_model`` of its
configurations, and ``crop_size`` of ``dataset.preprocessing``. Images are RGB in 0…1.

    encoder  patches and N latents through a vision transformer → N latents → nearest codes
    decoder  N codes and as many mask tokens as patches through another → a map of patches
             → pixels, or (legacy) probabilities of the codes of a VQGAN, whose decoder ends it

Not here: TiTok with continuous latents (``quantize_mode: vae``), which has no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.maskgit_transformer import Attention
from fewstep.export.models.sizes import check_whole
from fewstep.export.models.vqgan import Codebook, ResnetBlock

SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, blocks and heads of the vision transformers."""

_PIXEL_CODES, _PIXEL_CODE_WIDTH = 1024, 256
_PIXEL_CH_MULT = (1, 1, 2, 2, 4)
_DOUBLINGS = len(_PIXEL_CH_MULT) - 1


# --- vision transformer


def _normal(*shape: int) -> nn.Parameter:
    """A new parameter; its last axis is the width of the transformer."""
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=shape[-1] ** -0.5))


class _Mlp(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return out


class _Block(nn.Module):
    """A pre-norm transformer block: ``[B, L, C] → [B, L, C]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads), _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class _Transformer(nn.Module):
    """What encoder and decoder share: a class token, P patches and N latents see each other."""

    def __init__(self, size: tuple[int, int, int], patches: int, latents: int) -> None:
        super().__init__()
        self.width, blocks, heads = size
        self.class_embedding = _normal(1, self.width)
        self.positional_embedding = _normal(patches + 1, self.width)
        self.latent_token_positional_embedding = _normal(latents, self.width)
        self.ln_pre, self.ln_post = nn.LayerNorm(self.width), nn.LayerNorm(self.width)
        self.transformer = nn.ModuleList(_Block(self.width, heads) for _ in range(blocks))

    def run(self, patches: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Patches ``[B, P, C]`` and latents ``[B, N, C]`` → the same, after all blocks."""
        first = self.class_embedding.expand(latents.shape[0], 1, self.width)
        grid = torch.cat([first, patches], dim=1) + self.positional_embedding
        latents = latents + self.latent_token_positional_embedding
        x = self.ln_pre(torch.cat([grid, latents], dim=1))
        for block in self.transformer:
            x = block(x)
        x, end = self.ln_post(x), self.positional_embedding.shape[0]
        return x[:, 1:end], x[:, end:]


class TiTokEncoder(_Transformer):
    """Image ``[B, 3, H, W]`` and the latents that it starts with ``[N, C]`` → ``[B, N, D]``."""

    def __init__(
        self,
        size: tuple[int, int, int],
        side: int,
        patch_size: int,
        latents: int,
        token_size: int,
        is_legacy: bool,
    ) -> None:
        super().__init__(size, side**2, latents)
        self.is_legacy, self.latents = is_legacy, latents
        self.patch_embed = nn.Conv2d(3, self.width, patch_size, stride=patch_size)
        self.conv_out = nn.Conv2d(self.width, token_size, 1)

    def forward(self, image: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)  # [B, P, C]
        _, x = self.run(patches, latent_tokens.expand(image.shape[0], -1, -1))
        # A legacy model takes its numbers [N, C] for [C, N], and was trained with that.
        legacy = x.reshape(-1, self.width, self.latents)
        x = legacy if self.is_legacy else x.transpose(1, 2)  # [B, C, N]
        out: Tensor = self.conv_out(x.unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        return out


class TiTokDecoder(_Transformer):
    """Codes ``[B, N, D]`` → image ``[B, 3, H, W]``, or logits of a VQGAN's codes (legacy)."""

    def __init__(
        self,
        size: tuple[int, int, int],
        side: int,
        patch_size: int,
        latents: int,
        token_size: int,
        is_legacy: bool,
    ) -> None:
        super().__init__(size, side**2, latents)
        self.is_legacy, self.side, self.patch_size = is_legacy, side, patch_size
        self.decoder_embed = nn.Linear(token_size, self.width)
        self.mask_token = _normal(1, 1, self.width)
        if is_legacy:
            hidden = 2 * self.width
            ends = [nn.Conv2d(self.width, hidden, 1), nn.Tanh(), nn.Conv2d(hidden, _PIXEL_CODES, 1)]
        else:
            ends = [nn.Conv2d(self.width, 3 * patch_size**2, 1)]
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        self.ffn = nn.Sequential(*ends)

    def forward(self, codes: Tensor) -> Tensor:
        masks = self.mask_token.expand(codes.shape[0], self.side**2, self.width)
        x, _ = self.run(masks, self.decoder_embed(codes))
        x = self.ffn(x.transpose(1, 2).reshape(-1, self.width, self.side, self.side))
        return x if self.is_legacy else self._pixels(x)

    def _pixels(self, x: Tensor) -> Tensor:
        """Patches ``[B, p·p·3, h, w]``, the colour last → image ``[B, 3, h·p, w·p]``."""
        p, side = self.patch_size, self.side
        x = x.reshape(-1, p, p, 3, side, side).permute(0, 3, 4, 1, 5, 2)  # [B, 3, h, p, w, p]
        out: Tensor = self.conv_out(x.reshape(-1, 3, side * p, side * p))
        return out


# --- codes and pixels


class VectorQuantizer(nn.Module):
    """A codebook ``embedding [V, D]``; with ``use_l2_norm`` of directions only."""

    def __init__(self, codebook_size: int, token_size: int, use_l2_norm: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, token_size)
        self.use_l2_norm = use_l2_norm

    def forward(self, z: Tensor) -> Tensor:
        """The nearest code of each latent: ``[B, N, D] → ids [B, N]``."""
        z, codes = self._normed(z), self._normed(self.embedding.weight)
        # |z|² is the same for every code and so does not change the argmin.
        return (codes.square().sum(1) - 2 * (z @ codes.T)).argmin(-1)

    def codes(self, tokens: Tensor) -> Tensor:
        """Ids ``[B, N]`` → codes ``[B, N, D]``."""
        return self._normed(self.embedding(tokens))

    def _normed(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.use_l2_norm else x


class _PixelLevel(nn.Module):
    """Two residual blocks, and for all but the finest level a doubling with a convolution."""

    def __init__(self, source: int, width: int, doubles: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(ResnetBlock(source, width, 0.0), ResnetBlock(width, width, 0.0))
        self.upsample_conv = nn.Conv2d(width, width, 3, padding=1) if doubles else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if self.upsample_conv is not None:
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class PixelDecoder(nn.Module):
    """The decoder of MaskGIT's VQGAN under open-muse's keys: ``[B, D, h, w] → [B, 3, 16h, 16w]``.

    The network is that of :class:`fewstep.export.models.vqgan.Decoder`.
    """

    def __init__(self, hidden_channels: int = 128, z_channels: int = _PIXEL_CODE_WIDTH) -> None:
        super().__init__()
        widths = [hidden_channels * each for each in _PIXEL_CH_MULT]
        last = widths[-1]
        self.conv_in = nn.Conv2d(z_channels, last, 3, padding=1)
        self.mid = nn.Sequential(ResnetBlock(last, last, 0.0), ResnetBlock(last, last, 0.0))
        self.up = nn.ModuleList(
            _PixelLevel(source, width, level > 0)
            for level, (source, width) in enumerate(zip([*widths[1:], last], widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


# --- the tokenizer


class TiTok(nn.Module):
    """The tokenizer.

    Args:
        codebook_size: codes V.
        token_size: width D of a code.
        num_latent_tokens: tokens N of an image.
        vit_enc_model_size: of the encoder: ``small``, ``base`` or ``large``, or its width, blocks
            and heads.
        vit_dec_model_size: of the decoder.
        vit_enc_patch_size: pixels along the side of a patch that the encoder reads.
        vit_dec_patch_size: of a patch that the decoder makes. A legacy decoder makes 16 pixels of
            each whatever this says, so that its image has ``16 · crop_size / patch`` of them.
        use_l2_norm: whether codes are compared and decoded as directions.
        is_legacy: whether the decoder gives codes of a VQGAN instead of pixels. The encoders of
            these models also mix up two axes.
        finetune_decoder: whether the VQGAN's decoder is part of the model: always if legacy.
        quantize_mode: always ``vq``.
        crop_size: side of images in pixels, of ``dataset.preprocessing``.
        pixel_channels: width of the VQGAN's first level; the official code fixes it.
        commitment_cost: without effect here.
        pretrained_tokenizer_weight: without effect here.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        token_size: int,
        num_latent_tokens: int,
        vit_enc_model_size: str | Sequence[int],
        vit_dec_model_size: str | Sequence[int],
        vit_enc_patch_size: int = 16,
        vit_dec_patch_size: int = 16,
        use_l2_norm: bool,
        is_legacy: bool = True,
        finetune_decoder: bool = True,
        quantize_mode: str = "vq",
        crop_size: int = 256,
        pixel_channels: int = 128,
        commitment_cost: float = 0.25,
        pretrained_tokenizer_weight: str = "",
    ) -> None:
        super().__init__()
        check_whole(
            codebook_size=codebook_size,
            token_size=token_size,
            num_latent_tokens=num_latent_tokens,
            vit_enc_patch_size=vit_enc_patch_size,
            vit_dec_patch_size=vit_dec_patch_size,
            crop_size=crop_size,
            pixel_channels=pixel_channels,
        )
        _check_kind(quantize_mode, is_legacy, finetune_decoder, pixel_channels)
        self.codebook_size, self.num_tokens = codebook_size, num_latent_tokens
        sides = [
            _side(crop_size, patch, name)
            for name, patch in (
                ("vit_enc_patch_size", vit_enc_patch_size),
                ("vit_dec_patch_size", vit_dec_patch_size),
            )
        ]
        self.resolution = sides[1] * (2**_DOUBLINGS if is_legacy else vit_dec_patch_size)
        ends = (num_latent_tokens, token_size, is_legacy)
        encoder = _size("vit_enc_model_size", vit_enc_model_size)
        self.encoder = TiTokEncoder(encoder, sides[0], vit_enc_patch_size, *ends)
        decoder = _size("vit_dec_model_size", vit_dec_model_size)
        self.decoder = TiTokDecoder(decoder, sides[1], vit_dec_patch_size, *ends)
        self.latent_tokens = _normal(num_latent_tokens, encoder[0])
        self.quantize = VectorQuantizer(codebook_size, token_size, use_l2_norm)
        if is_legacy:
            self.pixel_quantize = Codebook(_PIXEL_CODES, _PIXEL_CODE_WIDTH)
            self.pixel_decoder = PixelDecoder(pixel_channels)

    def encode(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` in 0…1, of ``crop_size`` → token ids ``[B, N]``."""
        out: Tensor = self.quantize(self.encoder(image, self.latent_tokens))
        return out

    def unclamped(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, N]`` → image ``[B, 3, H, W]``, of ``resolution``, not clamped."""
        x: Tensor = self.decoder(self.quantize.codes(tokens))
        if not self.decoder.is_legacy:
            return x
        chances = torch.softmax(x, dim=1).permute(0, 2, 3, 1)  # [B, h, w, codes]
        z = chances @ self.pixel_quantize.embedding.weight  # their mean, [B, h, w, D]
        out: Tensor = self.pixel_decoder(z.permute(0, 3, 1, 2))
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, N]`` → image ``[B, 3, H, W]`` clamped to 0…1."""
        return torch.clamp(self.unclamped(tokens), 0.0, 1.0)


def _size(name: str, given: str | Sequence[int]) -> tuple[int, int, int]:
    """Width, blocks and heads."""
    found = SIZES.get(given) if isinstance(given, str) else tuple(given)
    if found is None or len(found) != 3:
        raise ValueError(
            f"{name} must be {', '.join(SIZES)}, or [width, blocks, heads], got {given!r}"
        )
    width, blocks, heads = found
    check_whole(**{f"width in {name}": width, f"blocks in {name}": blocks})
    check_whole(**{f"heads in {name}": heads})
    if width % heads:
        raise ValueError(f"{name}: width {width} must be a multiple of heads {heads}")
    return width, blocks, heads


def _side(crop_size: int, patch_size: int, name: str) -> int:
    if crop_size % patch_size:
        raise ValueError(f"crop_size {crop_size} must be a multiple of {name} {patch_size}")
    return crop_size // patch_size


def _check_kind(mode: str, is_legacy: bool, finetune_decoder: bool, pixel_channels: int) -> None:
    """Raise ``ValueError`` for a kind of model that has no tokens or makes no image."""
    if mode != "vq":
        raise ValueError(f"quantize_mode must be vq, got {mode!r}: a model without codes")
    if is_legacy and not finetune_decoder:
        raise ValueError(
            "finetune_decoder must be true where is_legacy is: a model of the first stage of "
            "training gives codes of a VQGAN, not images"
        )
    if finetune_decoder and not is_legacy:
        raise ValueError("finetune_decoder must be false where is_legacy is, got true")
    if pixel_channels % 32:
        raise ValueError(f"pixel_channels must be a multiple of 32, got {pixel_channels}")
