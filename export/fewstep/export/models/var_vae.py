"""VAR's multi-scale VQ autoencoder.

Same constructor arguments and state-dict keys as ``models/vqvae.py``, ``models/basic_vae.py`` and
``models/quant.py`` of the official VAR repository (FoundationVision/VAR). Images are RGB in −1…1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewstep.export.models.autoencoder import Decoder, Encoder, Levels, attended, conv, norm
from fewstep.export.models.var_quantizer import PATCH_NUMS, VectorQuantizer2, check_sides


class AttnBlock(nn.Module):
    """Attention of one head over all positions, and the input beside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.proj_out = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=1)
        out: Tensor = x + self.proj_out(attended(q, k, v))
        return out


class VQVAE(nn.Module):
    """The multi-scale tokenizer.

    Args:
        vocab_size: codes V.
        z_channels: width of a code, and channels of the latents.
        ch: width of the first level.
        dropout: without effect here.
        beta: without effect here.
        using_znorm: of :class:`VectorQuantizer2`.
        quant_conv_ks: kernel size of the convolutions before and after the codebook.
        quant_resi: of :class:`VectorQuantizer2`.
        share_quant_resi: of :class:`VectorQuantizer2`.
        default_qresi_counts: of :class:`VectorQuantizer2`.
        v_patch_nums: of :class:`VectorQuantizer2`.
        test_mode: without effect here.
        ch_mult: widths of the levels in multiples of ``ch``; the official code fixes it.
        num_res_blocks: of each level; the official code fixes it.
        using_sa: attention in the lowest level; the official code fixes it.
        using_mid_sa: attention in the middle; the official code fixes it.
        in_channels: of images.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        z_channels: int = 32,
        ch: int = 128,
        dropout: float = 0.0,
        beta: float = 0.25,
        using_znorm: bool = False,
        quant_conv_ks: int = 3,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        default_qresi_counts: int = 0,
        v_patch_nums: Sequence[int] = PATCH_NUMS,
        test_mode: bool = True,
        *,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        using_sa: bool = True,
        using_mid_sa: bool = True,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_sides("v_patch_nums", v_patch_nums)
        if in_channels != 3:
            raise ValueError(f"images have 3 channels, got in_channels {in_channels}")
        self.vocab_size, self.Cvae, self.beta = vocab_size, z_channels, beta
        self.v_patch_nums, self.downsampling = tuple(v_patch_nums), 2 ** (len(ch_mult) - 1)
        lowest = [len(ch_mult) - 1] if using_sa else []
        levels = Levels(
            ch=ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            z_channels=z_channels,
            encoded=z_channels,
            in_channels=in_channels,
            dropout=dropout,
            attention=AttnBlock,
            encoder_attention=lowest,
            decoder_attention=lowest,
            middle_attention=using_mid_sa,
        )
        self.encoder, self.decoder = Encoder(levels), Decoder(levels)
        self.quantize = VectorQuantizer2(
            vocab_size,
            z_channels,
            using_znorm,
            self.v_patch_nums,
            quant_resi,
            share_quant_resi,
            default_qresi_counts,
        )
        self.quant_conv = conv(z_channels, z_channels, quant_conv_ks)
        self.post_quant_conv = conv(z_channels, z_channels, quant_conv_ks)

    def latents(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` in −1…1 → latents before the codebook ``[B, C, G, G]``."""
        out: Tensor = self.quant_conv(self.encoder(image))
        return out

    def img_to_idxBl(self, image: Tensor) -> list[Tensor]:
        """Image ``[B, 3, H, W]`` in −1…1 → ids of every scale, ``[B, s²]``."""
        return [each.flatten(1) for each in self.quantize.token_maps(self.latents(image))]

    def unclamped(self, f_hat: Tensor) -> Tensor:
        """f̂ ``[B, C, G, G]`` → image ``[B, 3, H, W]`` in −1…1, not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(f_hat))
        return out
