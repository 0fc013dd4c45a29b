"""The memory of a program of masked autoregression, and what is written into it once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import ALIGNMENT, BufferSpec, Role
from fewstep.runtime.editing import original_buffer
from fewstep.runtime.families.mar.diffusion import coefficients
from fewstep.runtime.families.mar.key import MarKey
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.program import packed

_UNIT = ALIGNMENT // 4  # numbers and ids between two places where a tensor may begin


def tables(info: MarModel, key: MarKey) -> dict[str, npt.ArrayLike]:
    """What the key alone says, as kernels and graphs read it."""
    rows = []
    for iteration, known in enumerate(key.known[: len(key.counts)]):
        wanted = key.wanted(iteration)
        # In generation order where all positions are there; the selected begin with them.
        whole = key.refreshes(iteration) or key.recomputed[iteration] == info.positions
        rows.append(np.arange(wanted, dtype=np.int32) + (known if whole else 0))
    return {
        "timesteps": np.concatenate([[*each] for each in key.starts]).astype(np.int32),
        "coefficients": np.concatenate([*map(coefficients, key.starts)]),
        "wanted": packed(rows),
        "ranks": np.arange(max(key.counts), dtype=np.int32)[:, None],
    }


def buffers(
    info: MarModel, key: MarKey, tables: Mapping[str, npt.ArrayLike]
) -> dict[str, BufferSpec]:
    batch, rows, halves = key.batch, key.transformer_rows, key.rows
    tokens, channels, most = info.num_tokens, info.channels, max(key.counts)
    width, (height, across) = info.decoder_width, info.image_size
    taken = sum(map(len, key.starts))
    wanted = np.asarray(tables["wanted"]).shape
    floats = "float32"
    found = {
        "seeds": BufferSpec((batch,), "uint64", "input"),
        "condition": BufferSpec((rows,), "int32", "input"),
        "given": BufferSpec((batch, tokens), "uint8", "input"),
        "parameters": BufferSpec((len(key.counts), 2), floats, "input"),
        "timesteps": BufferSpec((taken,), "int32", "input"),
        "coefficients": BufferSpec((taken, 5), floats, "input"),
        "wanted": BufferSpec(wanted, "int32", "input"),
        "ranks": BufferSpec((most, rows), "int32", "input"),
        "error": BufferSpec((1,), "int32", "status"),
        "sampled": BufferSpec((len(key.counts), batch * most * channels), floats, "output"),
        "order": BufferSpec((tokens, rows), "int32", "output"),
        "pixels": BufferSpec((batch, height, across, 3), "uint8", "output"),
        "latents": BufferSpec((tokens, rows, channels), floats),
        "buffer": BufferSpec((info.buffer_size, rows, width), floats),
        "embeds": BufferSpec((tokens, rows, width), floats),
        "encoder_cache": BufferSpec(
            (len(info.encoder_names), tokens, rows * info.cache_width), floats
        ),
        "hidden": BufferSpec((info.positions, rows, width), floats),
        "value": BufferSpec(
            (2 if key.recomputed else 1, info.positions, rows, width), floats, aligned_rows=True
        ),
        "output": BufferSpec((key.most_wanted * rows * width,), floats),
        "positions": BufferSpec((most * halves,), "int32"),
        "z": BufferSpec((halves * most * width,), floats),
        "embedded": BufferSpec((halves * most * info.head_width,), floats),
        "x": BufferSpec((halves * most * channels,), floats),
        "denoised": BufferSpec((halves * most * 2 * channels,), floats),
        "counter": BufferSpec((1,), "int32"),
        "timestep": BufferSpec((1,), "int32"),
        "tokens": BufferSpec((batch, tokens, channels), floats),
        "image": BufferSpec((batch, 3, height, across), floats),
    }
    if key.of_image:
        found |= original_buffer(info, batch)
    if key.given:
        role: Role = "internal" if key.of_image else "input"
        found["given_tokens"] = BufferSpec((batch, tokens, channels), floats, role)
        found["kept"] = BufferSpec((batch, tokens, channels), floats, "output")
    if info.decoder_names:
        found["nothing"] = BufferSpec((1, _UNIT), floats)
        found["decoder_cache"] = _cache(info, key, info.positions)
    return found | _between(info, key)


def _between(info: MarModel, key: MarKey) -> dict[str, BufferSpec]:
    """What iterations between refreshes need besides."""
    rows, width, places = key.transformer_rows, info.decoder_width, info.positions
    found: dict[str, BufferSpec] = {}
    if key.reuse_guidance:
        most = key.most_wanted * rows * width
        found |= {
            "unconditional": BufferSpec((rows,), "int32", "input"),
            "guided_order": BufferSpec((info.num_tokens, key.rows), "int32"),
            "other_output": BufferSpec((most,), "float32"),
            "difference": BufferSpec((most,), "float32"),
            "both": BufferSpec((max(key.counts) * key.rows * width,), "float32"),
        }
    if not key.recomputed:
        return found
    new = max(key.counts)
    found |= {
        "new_latents": BufferSpec((new * rows * info.channels,), "float32"),
        "new_positions": BufferSpec((new * rows,), "int32"),
        "new_embeds": BufferSpec((new * rows * width,), "float32"),
    }
    if not key.selects(places):
        return found
    selected = [each for each in key.recomputed if 0 < each < places]
    found |= {
        "similarity": BufferSpec((len(key.counts), rows * places), "float32", "output"),
        "selected": BufferSpec((max(selected) * rows,), "int32"),
        "rest": BufferSpec(((places - min(selected)) * rows,), "int32"),
        "selected_hidden": BufferSpec((max(selected) * rows * width,), "float32"),
    }
    if info.decoder_names:
        found["new_cache"] = _cache(info, key, max(selected))
        found["past_cache"] = _cache(info, key, places - min(selected))
    return found


def _cache(info: MarModel, key: MarKey, positions: int) -> BufferSpec:
    """Keys and values of the decoder's blocks at so many positions, a row each."""
    size = positions * key.transformer_rows * info.decoder_width
    row = -(-size // _UNIT) * _UNIT
    return BufferSpec((len(info.decoder_names), row), "float32")
