"""VAR's networks as the graphs that a decode runs, scale by scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.image_encoder import encoder_graphs
from fewstep.export.models.var import VAR
from fewstep.export.models.var_quantizer import Phi
from fewstep.export.models.var_vae import VQVAE
from fewstep.export.source import Graph
from fewstep.runtime.families.var.model import VarModel
from fewstep.runtime.families.var.resize import area, bicubic


class Start(nn.Module):
    """What depends on the class alone: the first scale's input, and all modulations."""

    def __init__(self, var: VAR) -> None:
        super().__init__()
        self.var = var

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class ids ``[R]`` → ``[R, n, C]``, ``[R, depth, 6, C]``, ``[R, 2, C]``."""
        embedded = self.var.class_emb(condition)
        first = (
            embedded[:, None]
            + self.var.pos_start
            + self.var.positions()[None, : self.var.pos_start.shape[1]]
        )
        return first, *self.var.modulations(embedded)


class Trunk(nn.Module):
    """The blocks for one scale; reads the keys and values of those before, and gives its own."""

    def __init__(self, var: VAR, cache_width: int) -> None:
        super().__init__()
        self.blocks, self.width = var.blocks, var.embed_dim
        self.padding = cache_width - var.embed_dim

    def forward(self, embeds: Tensor, modulation: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """``[R, n, C]``, ``[R, depth, 6, C]``, per block keys and values ``[p, R, W]`` → hidden
        states ``[R, n, C]``, per block keys and values ``[n, R, W]``."""
        x, found = embeds, list[Tensor]()
        for index, block in enumerate(self.blocks):
            keys, values = past[2 * index], past[2 * index + 1]
            if self.padding:
                keys, values = keys[..., : self.width], values[..., : self.width]
            x, *new = block.step(x, modulation[:, index], (keys, values))  # type: ignore[operator]
            found += [F.pad(each, (0, self.padding)) for each in new] if self.padding else new
        return x, *found


class Head(nn.Module):
    """Hidden states ``[R, n, C]``, modulation ``[R, 2, C]`` → logits ``[R, n, V]``."""

    def __init__(self, var: VAR) -> None:
        super().__init__()
        self.norm, self.head = var.head_nm, var.head

    def forward(self, hidden: Tensor, head_modulation: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(hidden, head_modulation))
        return logits


class NextScale(nn.Module):
    """From the tokens of a scale to f̂, and from that to the input of the next scale.

    What differs between the scales are inputs, so that one graph serves all: matrices that resize
    maps, which φ to take, and which positions come next. All φ are computed, one is taken.
    """

    def __init__(self, var: VAR, vae: VQVAE) -> None:
        super().__init__()
        self.embedding, self.word_embed = vae.quantize.embedding, var.word_embed
        self.register_buffer("positions", var.positions().detach().clone())
        phis = [phi for phi in vae.quantize.phis if isinstance(phi, Phi)]
        self.phi_count, self.ratio = len(phis), phis[0].resi_ratio if phis else 0.0
        if phis:
            width = vae.Cvae
            self.phis = nn.Conv2d(width, width * len(phis), 3, padding=1)
            with torch.no_grad():
                self.phis.weight = nn.Parameter(torch.cat([phi.weight for phi in phis]))
                biases = [phi.bias for phi in phis if phi.bias is not None]
                self.phis.bias = nn.Parameter(torch.cat(biases))

    def forward(
        self,
        tokens: Tensor,
        f_hat: Tensor,
        up: Tensor,
        down: Tensor,
        phi: Tensor,
        positions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One scale.

        Args:
            tokens: ``[B, s, s]``.
            f_hat: of the scales before, ``[B, Z, G, G]``.
            up: ``[G, s]``, resizes token maps.
            down: ``[t, G]``, resizes f̂ to the next scale.
            phi: ``[1]``, index of φ.
            positions: of the next scale, ``[t, t]``.

        Returns:
            f̂ ``[B, Z, G, G]`` and the next scale's input ``[B, t, t, C]``.
        """
        maps = up @ self.embedding(tokens).permute(0, 3, 1, 2) @ up.transpose(0, 1)
        if self.phi_count:
            shape = (-1, self.phi_count, *maps.shape[1:])
            smooth = self.phis(maps).reshape(shape).index_select(1, phi)[:, 0]
            maps = (1 - self.ratio) * maps + self.ratio * smooth
        grown = f_hat + maps
        words = (down @ grown @ down.transpose(0, 1)).permute(0, 2, 3, 1)
        assert isinstance(self.positions, Tensor)
        return grown, self.word_embed(words) + F.embedding(positions, self.positions)


class ImageEncoder(nn.Module):
    """Image ``[B, 3, H, W]`` in 0…1 → ids of all scales in turn, ``[B, L]`` int32.

    Maps are resized by the matrices that :class:`NextScale` is given, so that what a token adds to
    f̂ is what the rest was less by.
    """

    def __init__(self, model: VarModel, vae: VQVAE) -> None:
        super().__init__()
        self.vae, self.sides = vae, model.patch_nums
        for scale, side in enumerate(model.patch_nums[:-1]):
            self.register_buffer(f"down_{scale}", torch.from_numpy(area(model.grid, side)))
            self.register_buffer(f"up_{scale}", torch.from_numpy(bicubic(side, model.grid)))

    def forward(self, image: Tensor) -> Tensor:
        quantize = self.vae.quantize
        rest, found = self.vae.latents(2 * image - 1), list[Tensor]()
        for scale in range(len(self.sides)):
            ids = quantize.nearest(self._resized(rest, "down", scale))  # [B, s, s]
            maps = self._resized(quantize.embedding(ids).permute(0, 3, 1, 2), "up", scale)
            rest = rest - quantize.phi(scale)(maps)
            found.append(ids.flatten(1))
        return torch.cat(found, 1).int()

    def _resized(self, maps: Tensor, way: str, scale: int) -> Tensor:
        """Maps ``[B, C, …]`` of the full grid to a scale's (``down``), or back (``up``)."""
        if scale == len(self.sides) - 1:
            return maps
        matrix: Tensor = getattr(self, f"{way}_{scale}")
        return matrix @ maps @ matrix.transpose(0, 1)


class Decoder(nn.Module):
    """f̂ ``[B, Z, G, G]`` → image ``[B, 3, H, W]`` in 0…1."""

    def __init__(self, vae: VQVAE) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def unclamped(self, f_hat: Tensor) -> Tensor:
        """The same, not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(f_hat))
        return (out + 1) / 2

    def forward(self, f_hat: Tensor) -> Tensor:
        return torch.clamp(self.unclamped(f_hat), 0.0, 1.0)


class Features(nn.Module):
    """What policies read: hidden states as a map, resized to the size that all of them know."""

    def forward(self, hidden: Tensor, resize: Tensor) -> Tensor:
        """``[B, s, s, C]`` and ``[16, s]`` → ``[B, 256, C]``."""
        maps = resize @ hidden.permute(0, 3, 1, 2) @ resize.transpose(0, 1)
        return maps.flatten(2).transpose(1, 2)


def graphs(
    model: VarModel, var: VAR, vae: VQVAE, policies: Mapping[str, nn.Module]
) -> dict[str, Graph]:
    """Every graph of a model, with examples of batch 2.

    Args:
        model: what the manifest says of it.
        var: the transformer.
        vae: the tokenizer.
        policies: networks by the names of their graphs.
    """
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    def ids(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=random, dtype=torch.int32)

    length, past, side, next_side, width, grid = 4, 5, 3, 6, model.width, model.grid
    rows = {0: "batch"}
    trunk = {"embeds": normal(2, length, width), "modulation": normal(2, model.depth, 6, width)}
    trunk_dims = {"embeds": {0: "batch", 1: "length"}, "modulation": rows}
    for name in model.cache_names:
        trunk[f"past_{name}"] = normal(past, 2, model.cache_width)
        trunk_dims[f"past_{name}"] = {0: "past", 1: "batch"}
    decoder = Decoder(vae)
    f_hat = normal(2, model.codebook_width, grid, grid)
    found = {
        "start": Graph(
            Start(var),
            {"condition": torch.tensor([0, var.num_classes], dtype=torch.int32)},
            ("embeds", "modulation", "head_modulation"),
        ),
        "trunk": Graph(
            Trunk(var, model.cache_width),
            trunk,
            ("hidden", *(f"new_{name}" for name in model.cache_names)),
            trunk_dims,
        ),
        "head": Graph(
            Head(var),
            {"hidden": normal(2, length, width), "head_modulation": normal(2, 2, width)},
            ("logits",),
            {"hidden": {0: "batch", 1: "length"}, "head_modulation": rows},
        ),
        "next_scale": Graph(
            NextScale(var, vae),
            {
                "tokens": ids(model.codebook_size, 2, side, side),
                "f_hat": f_hat,
                "up": normal(grid, side),
                "down": normal(next_side, grid),
                "phi": ids(1, 1),
                "positions": ids(model.num_tokens, next_side, next_side),
            },
            ("next_f_hat", "embeds"),
            {
                "tokens": {0: "batch", 1: "side", 2: "side"},
                "f_hat": rows,
                "up": {1: "side"},
                "down": {0: "next_side"},
                "positions": {0: "next_side", 1: "next_side"},
            },
        ),
    }
    if policies:
        feature_side = model.feature_side
        found["features"] = Graph(
            Features(),
            {"hidden": normal(2, side, side, width), "resize": normal(feature_side, side)},
            ("features",),
            {"hidden": {0: "batch", 1: "side", 2: "side"}, "resize": {1: "side"}},
        )
        state = {
            "features": normal(2, feature_side**2, width),
            "step": torch.tensor([0, 3], dtype=torch.int32),
        }
        found |= {name: Graph(each, state, ("action",)) for name, each in policies.items()}
    found["decoder"] = Graph(decoder, {"f_hat": f_hat}, ("image",), unclamped=decoder.unclamped)
    return found | encoder_graphs(model, ImageEncoder(model, vae))
