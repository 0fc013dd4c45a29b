"""MAR's KL autoencoder.

Same constructor arguments and state-dict keys as ``models/vae.py`` of the official MAR repository
(LTH14/mar), which follows that of latent diffusion. Images are RGB in −1…1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewstep.export.models.autoencoder import Decoder, Encoder, Levels, attended, conv, norm


class AttnBlock(nn.Module):
    """Attention of one head over all positions, and the input beside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v = (conv(channels, channels, 1) for _ in range(3))
        self.proj_out = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        out: Tensor = x + self.proj_out(attended(self.q(h), self.k(h), self.v(h)))
        return out


class AutoencoderKL(nn.Module):
    """Images to Gaussians of latents, and latents to images.

    Args:
        embed_dim: channels of the latents.
        ch_mult: widths of the levels in multiples of ``ch``.
        use_variational: whether the encoder gives a Gaussian, and not latents alone.
        ch: width of the first level; the official code fixes this and all that follows.
        num_res_blocks: of each level.
        attn_resolutions: sides of the encoder's levels with attention, for images of ``resolution``
            pixels. Levels of the decoder have none.
        resolution: side of images that the resolutions are of; any other works too.
        in_channels: of images.
        dropout: without effect here.
    """

    def __init__(
        self,
        embed_dim: int = 16,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        use_variational: bool = True,
        *,
        ch: int = 128,
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        resolution: int = 256,
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if in_channels != 3:
            raise ValueError(f"images have 3 channels, got in_channels {in_channels}")
        self.embed_dim, self.use_variational = embed_dim, use_variational
        self.downsampling = 2 ** (len(ch_mult) - 1)
        sides = [resolution // 2**level for level in range(len(ch_mult))]
        levels = Levels(
            ch=ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            z_channels=embed_dim,
            encoded=2 * embed_dim,
            in_channels=in_channels,
            dropout=dropout,
            attention=AttnBlock,
            encoder_attention=[
                level for level, side in enumerate(sides) if side in attn_resolutions
            ],
        )
        self.encoder, self.decoder = Encoder(levels), Decoder(levels)
        moments = 2 * embed_dim if use_variational else embed_dim
        self.quant_conv = conv(2 * embed_dim, moments, 1)
        self.post_quant_conv = conv(embed_dim, embed_dim, 1)

    def moments(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` in −1…1 → mean and log variance ``[B, 2·embed_dim, h, w]``; the
        mean alone where there is no Gaussian."""
        out: Tensor = self.quant_conv(self.encoder(image))
        return out

    def mean(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` in −1…1 → mean of its latents ``[B, embed_dim, h, w]``."""
        return self.moments(image)[:, : self.embed_dim]

    def unclamped(self, z: Tensor) -> Tensor:
        """Latents ``[B, embed_dim, h, w]`` → image ``[B, 3, H, W]`` in −1…1, not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out
