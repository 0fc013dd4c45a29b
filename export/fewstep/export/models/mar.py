"""MAR's transformer: an encoder of the tokens that are known, a decoder for those that are not.

Same constructor arguments and state-dict keys as ``models/mar.py`` of the official MAR repository
(LTH14/mar). Tokens are given in the order in which they are decided, so that the known ones come
first and nothing has to be masked or gathered; ``order`` says where each is in the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.mar_head import DiffLoss
from fewstep.export.models.sizes import check_whole

Cached = tuple[Tensor, Tensor]
"""Keys and values of other positions, ``[p, R, W]`` each."""


class Attention(nn.Module):
    """Attention of all positions to all, with q, k and v in one layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[R, n, W]`` → queries, keys and values ``[R, n, W]``."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries ``[R, n, W]``, keys and values ``[R, m, W]`` → ``[R, n, W]``."""
        width = self.heads * self.head_width
        per_head = (q.shape[0], -1, self.heads, self.head_width)
        q = q.reshape(q.shape[0], q.shape[1], *per_head[2:]).transpose(1, 2) * self.head_width**-0.5
        k = k.reshape(per_head).permute(0, 2, 3, 1)  # [R, H, d, m]
        v = v.reshape(per_head).transpose(1, 2)  # [R, H, m, d]
        h = torch.softmax(q @ k, dim=-1) @ v
        out: Tensor = self.proj(h.transpose(1, 2).reshape(q.shape[0], q.shape[2], width))
        return out


class Mlp(nn.Module):
    """Two layers with GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """A block of timm's vision transformer."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, int(width * mlp_ratio))

    def attention(
        self, x: Tensor, cached: Cached | None = None, wanted: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first half of the block.

        Args:
            x: ``[R, n, W]``.
            cached: of positions that ``x`` does not have.
            wanted: the positions of ``x`` that are computed, ``[w]``; all if ``None``. The others
                are looked at all the same.

        Returns:
            ``[R, w, W]``, and keys and values of all of ``x``, ``[n, R, W]``.
        """
        q, k, v = self.attn.split(self.norm1(x))
        if wanted is not None:
            x, q = x.index_select(1, wanted), q.index_select(1, wanted)
        new = k.transpose(0, 1), v.transpose(0, 1)
        if cached is not None:
            k = torch.cat([cached[0].transpose(0, 1), k], dim=1)
            v = torch.cat([cached[1].transpose(0, 1), v], dim=1)
        return x + self.attn.attend(q, k, v), *new

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half, position by position."""
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """``[R, n, W] → [R, n, W]``."""
        return self.feed_forward(self.attention(x)[0])


class MAR(nn.Module):
    """The transformer with its diffusion head.

    Args:
        img_size: side of images in pixels.
        vae_stride: pixels of a position of the latents.
        patch_size: positions of the latents along the side of a token.
        encoder_embed_dim: width of the encoder.
        encoder_depth: its blocks.
        encoder_num_heads: its heads.
        decoder_embed_dim: width D of the decoder.
        decoder_depth: its blocks.
        decoder_num_heads: its heads.
        mlp_ratio: hidden width of the blocks over their width.
        norm_layer_eps: of LayerNorm: what the official ``norm_layer`` of published models has.
        vae_embed_dim: channels of the latents.
        mask_ratio_min: without effect here.
        label_drop_prob: without effect here.
        class_num: classes.
        attn_dropout: without effect here.
        proj_dropout: without effect here.
        buffer_size: positions in front of the tokens, which carry the class.
        diffloss_d: blocks of the head.
        diffloss_w: width of the head.
        num_sampling_steps: without effect here: requests say it.
        diffusion_batch_mul: without effect here.
        grad_checkpointing: without effect here.
    """

    def __init__(
        self,
        img_size: int = 256,
        vae_stride: int = 16,
        patch_size: int = 1,
        encoder_embed_dim: int = 1024,
        encoder_depth: int = 16,
        encoder_num_heads: int = 16,
        decoder_embed_dim: int = 1024,
        decoder_depth: int = 16,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_layer_eps: float = 1e-6,
        vae_embed_dim: int = 16,
        mask_ratio_min: float = 0.7,
        label_drop_prob: float = 0.1,
        class_num: int = 1000,
        attn_dropout: float = 0.1,
        proj_dropout: float = 0.1,
        buffer_size: int = 64,
        diffloss_d: int = 3,
        diffloss_w: int = 1024,
        num_sampling_steps: str = "100",
        diffusion_batch_mul: int = 4,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_whole(
            img_size=img_size,
            vae_stride=vae_stride,
            patch_size=patch_size,
            encoder_embed_dim=encoder_embed_dim,
            encoder_depth=encoder_depth,
            encoder_num_heads=encoder_num_heads,
            decoder_embed_dim=decoder_embed_dim,
            decoder_depth=decoder_depth,
            decoder_num_heads=decoder_num_heads,
            vae_embed_dim=vae_embed_dim,
            class_num=class_num,
            buffer_size=buffer_size,
            diffloss_d=diffloss_d,
            diffloss_w=diffloss_w,
        )
        _check(img_size, vae_stride * patch_size, "vae_stride times patch_size", "img_size")
        _check(encoder_embed_dim, encoder_num_heads, "encoder_num_heads", "encoder_embed_dim")
        _check(decoder_embed_dim, decoder_num_heads, "decoder_num_heads", "decoder_embed_dim")
        if not _is_number(mlp_ratio) or mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be above 0, got {mlp_ratio!r}")
        if not _is_number(norm_layer_eps) or not 0 < norm_layer_eps < 1:
            raise ValueError(f"norm_layer_eps must be above 0 and below 1, got {norm_layer_eps!r}")
        self.vae_stride, self.patch_size, self.vae_embed_dim = vae_stride, patch_size, vae_embed_dim
        self.side = img_size // vae_stride // patch_size
        self.seq_len, self.token_embed_dim = self.side**2, vae_embed_dim * patch_size**2
        self.class_num, self.buffer_size = class_num, buffer_size
        self.encoder_width, self.decoder_width = encoder_embed_dim, decoder_embed_dim
        places = self.seq_len + buffer_size

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(shape))

        self.class_emb = nn.Embedding(class_num, encoder_embed_dim)
        self.fake_latent = normal(1, encoder_embed_dim)
        self.z_proj = nn.Linear(self.token_embed_dim, encoder_embed_dim)
        self.z_proj_ln = nn.LayerNorm(encoder_embed_dim, eps=1e-6)
        self.encoder_pos_embed_learned = normal(1, places, encoder_embed_dim)
        self.encoder_blocks = nn.ModuleList(
            Block(encoder_embed_dim, encoder_num_heads, mlp_ratio, norm_layer_eps)
            for _ in range(encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(encoder_embed_dim, eps=norm_layer_eps)
        self.decoder_embed = nn.Linear(encoder_embed_dim, decoder_embed_dim)
        self.mask_token = normal(1, 1, decoder_embed_dim)
        self.decoder_pos_embed_learned = normal(1, places, decoder_embed_dim)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, norm_layer_eps)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=norm_layer_eps)
        self.diffusion_pos_embed_learned = normal(1, self.seq_len, decoder_embed_dim)
        self.diffloss = DiffLoss(self.token_embed_dim, decoder_embed_dim, diffloss_d, diffloss_w)

    def encoder_input(self, embedded: Tensor, positions: Tensor, condition: Tensor) -> Tensor:
        """What the encoder's blocks are given: the buffer, then tokens.

        Args:
            embedded: tokens as ``z_proj`` embeds them, ``[R, n, W]``.
            positions: where they are in the image, row by row, ``[R, n]``.
            condition: class ids ``[R]``; ``class_num`` for none.

        Returns:
            ``[R, buffer + n, W]``.
        """
        classes = F.embedding(condition, torch.cat([self.class_emb.weight, self.fake_latent]))
        places = self.encoder_pos_embed_learned[0]
        buffer = classes[:, None] + places[: self.buffer_size]
        known = embedded + F.embedding(positions, places[self.buffer_size :])
        out: Tensor = self.z_proj_ln(torch.cat([buffer, known], dim=1))
        return out

    def encoder_output(self, x: Tensor) -> Tensor:
        """After the encoder's blocks: what the decoder is told, ``[R, buffer + n, D]``."""
        out: Tensor = self.decoder_embed(self.encoder_norm(x))
        return out

    def decoder_input(self, buffer: Tensor, known: Tensor, order: Tensor) -> Tensor:
        """What the decoder's blocks are given: all tokens in generation order, then the buffer.

        Args:
            buffer: of the encoder, ``[R, buffer, D]``.
            known: of the encoder, the tokens that are known, ``[R, V, D]``.
            order: where all tokens are in the image, ``[R, L]``, the known ones first.

        Returns:
            ``[R, L + buffer, D]``.
        """
        places = self.decoder_pos_embed_learned[0]
        at = F.embedding(order, places[self.buffer_size :])
        count = known.shape[1]
        # Or an export would not know the sum of both.
        torch._check(count <= order.shape[1])  # type: ignore[no-untyped-call]
        masked = at[:, count:] + self.mask_token
        return torch.cat(
            [known + at[:, :count], masked, buffer + places[: self.buffer_size]], dim=1
        )

    def z(self, x: Tensor, positions: Tensor) -> Tensor:
        """After the decoder's blocks ``[R, n, D]``: z of tokens at ``positions [R, n]``."""
        out: Tensor = self.decoder_norm(x) + F.embedding(
            positions, self.diffusion_pos_embed_learned[0]
        )
        return out

    def forward(self, tokens: Tensor, order: Tensor, condition: Tensor) -> Tensor:
        """All at once, as training does.

        Args:
            tokens: the known ones in generation order, ``[R, V, C]``.
            order: where all tokens are in the image, ``[R, L]``.
            condition: class ids ``[R]``; ``class_num`` for none.

        Returns:
            z of the tokens that are not known, ``[R, L − V, D]``.
        """
        known = tokens.shape[1]
        x = self.encoder_input(self.z_proj(tokens), order[:, :known], condition)
        for block in self.encoder_blocks:
            x = block(x)
        x = self.encoder_output(x)
        x = self.decoder_input(x[:, : self.buffer_size], x[:, self.buffer_size :], order)
        for block in self.decoder_blocks:
            x = block(x)
        return self.z(x[:, known : order.shape[1]], order[:, known:])

    def tokens(self, latents: Tensor) -> Tensor:
        """Latents ``[B, c, h, w]`` → tokens ``[B, L, C]``, row by row, as ``patchify`` does."""
        p, side = self.patch_size, self.side
        patches = latents.reshape(-1, self.vae_embed_dim, side, p, side, p)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, self.seq_len, self.token_embed_dim)

    def latents(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, L, C]`` → latents ``[B, c, h, w]``, as ``unpatchify`` does."""
        p, side = self.patch_size, self.side
        patches = tokens.reshape(-1, side, side, self.vae_embed_dim, p, p).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(-1, self.vae_embed_dim, side * p, side * p)


def _check(whole: int, part: int, part_name: str, whole_name: str) -> None:
    if whole % part:
        raise ValueError(f"{whole_name} {whole} must be a multiple of {part_name} {part}")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
