"""Masked autoregression over continuous tokens as a program.

    [image_encoder(original) → given_tokens              only where tokens of a picture stay]
    random_order → order: given tokens first, then the others in the order of their decision
    iteration i, V tokens known, K decided now:
      encoder(latents[0 : V]) → buffer, embeds
      decoder_start(buffer, embeds, order) → hidden states of all positions
      decoder_rest(hidden) → output of the K next tokens
      readout(output) → z, embedded
      start_diffusion → x
      as often as there are diffusion steps: head(x, timestep, embedded) → denoised;
                                             diffusion_step → x; advance
      x → sampled[i] → latents[V : V + K]
    end: scatter_tokens → tokens; decoder(tokens) → image → pixels

Tokens lie in the order of their decision, so that the known ones and the next ones are rows of
buffers, whose number is known before the run: nothing is masked, and nothing is read back.

Between refreshes (LazyMAR) the encoder computes the buffer and the tokens decided last, from cached
keys and values of the others, and of the decoder only what changed most goes through all blocks:

      similarity(value, value of the iteration before) → select_rows → selected, rest
      gather_rows(hidden, selected), gather_rows(decoder's cache, rest) → decoder_rest → output
      scatter_rows(its keys and values, selected) → decoder's cache
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fewstep.runtime.decoders import DECODER
from fewstep.runtime.editing import encoding
from fewstep.runtime.families import Model
from fewstep.runtime.families.mar.buffers import buffers, tables
from fewstep.runtime.families.mar.key import MarKey
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.program import Copy, Launch, Op, Program, Repeat, Run, View

Arguments = dict[str, View | int | float]


def mar_program(model: Model, key: MarKey) -> Program:
    """The program for a key."""
    info: MarModel = model.info
    known = tables(info, key)
    return Program(
        buffers(info, key, known),
        tuple(_Operations(info, key).all()),
        decisions=("sampled", "similarity") if key.selects(info.positions) else ("sampled",),
        initial={**known, "parameters": np.ones((len(key.counts), 2), np.float32)},
    )


class _Operations:
    """The operations of one key."""

    def __init__(self, info: MarModel, key: MarKey) -> None:
        self._info, self._key = info, key
        self._taken, self._starts, self._known = key.taken, key.starts, key.known

    def all(self) -> Iterator[Op | Repeat]:
        """In their order."""
        key = self._key
        if key.of_image:
            yield encoding(View("given_tokens"))
        yield self._order("order")
        if key.reuse_guidance:
            yield self._order("guided_order")
        if key.given:
            yield Copy(View("kept"), View("given_tokens"))
            given = View("given_tokens")
            yield self._gathered(given, View("order")[: key.given], 0, key.given, 0)
        for iteration in range(len(key.counts)):
            yield from self._transformer(iteration)
            yield from self._diffusion(iteration)
        last = len(key.counts) - 1
        scatter: Arguments = {
            "source": View("latents"),
            "index": View("order"),
            "target": View("tokens"),
        }
        yield Launch("scatter_tokens", scatter, ("target",), last)
        drawn_from = {"tokens": View("tokens"), "image": View("image")}
        yield Run(key.decoder, drawn_from, last, DECODER)
        drawn: Arguments = {name: View(name) for name in ("image", "pixels", "error")}
        yield Launch("to_pixels", drawn, ("pixels", "error"), last)

    def _order(self, name: str) -> Launch:
        arguments: Arguments = {
            "seeds": View("seeds"),
            "given": View("given"),
            "order": View(name),
        }
        return Launch("random_order", arguments, ("order",))

    def _gathered(self, source: View, index: View, first: int, end: int, step: int) -> Launch:
        """Tokens of images to the known ones ``latents[first:end]``."""
        arguments: Arguments = {
            "source": source,
            "index": index,
            "target": View("latents")[first:end],
        }
        return Launch("gather_tokens", arguments, ("target",), step)

    def _transformer(self, iteration: int) -> Iterator[Op]:
        key = self._key
        rows, count = key.transformer_rows, key.counts[iteration]
        width = self._info.decoder_width
        output = View("output").reshaped(key.wanted(iteration), rows, width)
        if key.reuse_guidance and key.refreshes(iteration):
            other = View("other_output").reshaped(*self._shape(output))
            yield from self._full(iteration, "unconditional", other)
            yield from self._full(iteration, "condition", output)
            difference = View("difference").reshaped(*self._shape(output))
            operands: Arguments = {"a": other, "b": output, "out": difference}
            yield Launch("subtract", operands, ("out",), iteration, "guidance")
        elif key.refreshes(iteration):
            yield from self._full(iteration, "condition", output)
        else:
            yield from self._partial(iteration, output)
        if key.reuse_guidance:
            yield self._both(iteration, output)
            output = View("both").reshaped(count, key.rows, width)
        yield from self._readout(iteration, output)

    def _both(self, iteration: int, output: View) -> Launch:
        """The output of both halves, from the conditional one and the difference."""
        key, width = self._key, self._info.decoder_width
        refreshed = max(n for n in range(iteration + 1) if key.refreshes(n))
        past = self._known[iteration] - self._known[refreshed]
        count = key.counts[iteration]
        kept = View("difference").reshaped(key.wanted(refreshed), key.batch, width)
        arguments: Arguments = {
            "own": output[:count],
            "difference": kept[past : past + count],
            "both": View("both").reshaped(count, key.rows, width),
        }
        return Launch("add_half", arguments, ("both",), iteration, "guidance")

    def _shape(self, view: View) -> tuple[int, ...]:
        assert view.shape is not None
        return view.shape

    def _full(self, iteration: int, condition: str, output: View) -> Iterator[Op]:
        """Everything, for all positions; keys and values are kept."""
        info, key = self._info, self._key
        known, rows = self._known[iteration], key.transformer_rows
        tokens = View("latents")[:known], View("order")[:known]
        embeds = View("embeds")[:known]
        yield self._encoder(iteration, condition, tokens, embeds, 0)
        yield self._decoder_start(iteration)
        shape = info.positions, rows, info.decoder_width
        hidden = View("hidden").reshaped(*shape)
        yield self._decoder_rest(iteration, hidden, output, "decoder_cache", 0)

    def _partial(self, iteration: int, output: View) -> Iterator[Op]:
        """What is new, and what changed most; the rest is in the caches."""
        info, key = self._info, self._key
        before, known = self._known[iteration - 1], self._known[iteration]
        rows, width, count = key.transformer_rows, info.decoder_width, key.counts[iteration]
        new = known - before
        tokens = View("new_latents").reshaped(new, rows, info.channels)
        positions = View("new_positions").reshaped(new, rows)
        yield Copy(tokens, View("latents")[before:known], iteration)
        yield Copy(positions, View("order")[before:known], iteration)
        embeds = View("new_embeds").reshaped(new, rows, width)
        yield self._encoder(iteration, "condition", (tokens, positions), embeds, before)
        yield Copy(View("embeds")[before:known], embeds, iteration)
        yield self._decoder_start(iteration)
        selected = key.recomputed[iteration]
        if selected == info.positions:
            hidden = View("hidden").reshaped(info.positions, rows, width)
            yield self._decoder_rest(iteration, hidden, output, "decoder_cache", 0)
            return
        yield from self._selection(iteration, selected, new, count)
        hidden = View("selected_hidden").reshaped(selected, rows, width)
        rest = info.positions - selected
        yield self._decoder_rest(iteration, hidden, output, "new_cache", rest)
        if info.decoder_names:
            chosen = View("selected").reshaped(selected, rows)
            source, target = View("new_cache"), View("decoder_cache")
            yield self._rows("scatter_rows", source, chosen, target, iteration)

    def _encoder(
        self,
        iteration: int,
        condition: str,
        tokens: tuple[View, View],
        embeds: View,
        past: int,
    ) -> Run:
        """The encoder on some tokens, the last of those that are known; ``past`` are cached."""
        info, key = self._info, self._key
        known, rows = self._known[iteration], key.transformer_rows
        bindings = {
            "tokens": tokens[0],
            "positions": tokens[1],
            "condition": View(condition),
            "buffer": View("buffer"),
            "embeds": embeds,
        }
        for index, name in enumerate(info.encoder_names):
            own = View("encoder_cache", index).reshaped(known, rows, info.cache_width)
            bindings[f"past_{name}"], bindings[f"new_{name}"] = own[:past], own[past:known]
        return Run("encoder", bindings, iteration)

    def _decoder_start(self, iteration: int) -> Run:
        bindings = {
            "buffer": View("buffer"),
            "embeds": View("embeds")[: self._known[iteration]],
            "order": View("order"),
            "hidden": View("hidden"),
            "value": self._value(iteration),
        }
        return Run("decoder_start", bindings, iteration)

    def _decoder_rest(self, iteration: int, hidden: View, output: View, new: str, past: int) -> Run:
        """The rest of the decoder; ``new`` takes its keys and values."""
        info, rows = self._info, self._key.transformer_rows
        wanted, _, width = self._shape(output)
        bindings = {
            "hidden": hidden,
            "wanted": View("wanted", iteration).reshaped(wanted),
            "output": output,
        }
        for index, name in enumerate(info.decoder_names):
            cached = View("past_cache", index) if past else View("nothing", 0)
            bindings[f"past_{name}"] = cached.reshaped(past, rows, width)
            bindings[f"new_{name}"] = View(new, index).reshaped(*self._shape(hidden))
        return Run("decoder_rest", bindings, iteration)

    def _selection(self, iteration: int, selected: int, new: int, count: int) -> Iterator[Op]:
        """Which positions are computed, and what they are computed from."""
        info, rows = self._info, self._key.transformer_rows
        width, batch = info.decoder_width, self._key.batch
        similarity = View("similarity", iteration).reshaped(batch, rows // batch, info.positions)
        alike: Arguments = {
            "values": self._value(iteration),
            "cached": self._value(iteration - 1),
            "heads": info.decoder_heads,
            "similarity": similarity,
            "error": View("error"),
        }
        yield Launch("similarity", alike, ("similarity", "error"), iteration, "selection")
        chosen = View("selected").reshaped(selected, rows)
        others = View("rest").reshaped(info.positions - selected, rows)
        select: Arguments = {
            "similarity": similarity,
            "known": self._known[iteration],
            "previous": new,
            "following": count,
            "selected": chosen,
            "rest": others,
        }
        yield Launch("select_rows", select, ("selected", "rest"), iteration, "selection")
        size = info.positions * rows * width
        every = View("hidden").reshaped(1, size)
        some = View("selected_hidden").reshaped(1, selected * rows * width)
        yield self._rows("gather_rows", every, chosen, some, iteration)
        if info.decoder_names:
            source, target = View("decoder_cache"), View("past_cache")
            yield self._rows("gather_rows", source, others, target, iteration)

    def _value(self, iteration: int) -> View:
        """The values of an iteration, which the next one compares its own with."""
        return View("value", iteration % 2 if self._key.recomputed else 0)

    def _rows(self, kernel: str, source: View, index: View, target: View, iteration: int) -> Launch:
        arguments: Arguments = {
            "source": source,
            "index": index,
            "width": self._info.decoder_width,
            "target": target,
        }
        # Of whole caches only some rows are moved.
        return Launch(kernel, arguments, ("target",), iteration, "selection", skips=("source",))

    def _readout(self, iteration: int, output: View) -> Iterator[Op]:
        info, key = self._info, self._key
        count, rows = key.counts[iteration], key.rows
        known = self._known[iteration]
        order = View("guided_order" if key.reuse_guidance else "order")
        positions = View("positions").reshaped(count, rows)
        yield Copy(positions, order[known : known + count], iteration)
        bindings = {
            "output": output,
            "positions": positions,
            "z": View("z").reshaped(rows, count, info.decoder_width),
            "embedded": View("embedded").reshaped(rows, count, info.head_width),
        }
        yield Run("readout", bindings, iteration)

    def _diffusion(self, iteration: int) -> Iterator[Op | Repeat]:
        info, key = self._info, self._key
        rows, count, known = key.rows, key.counts[iteration], self._known[iteration]
        taken = self._taken[iteration]
        x = View("x").reshaped(rows, count, info.channels)
        positions = View("positions").reshaped(count, rows)
        state: Arguments = {name: View(name) for name in ("counter", "timestep", "timesteps")}
        first = self._starts[taken]
        start: Arguments = {
            **state,
            "seeds": View("seeds"),
            "positions": positions,
            "first": first,
            "x": x,
        }
        yield Launch(
            "start_diffusion",
            start,
            ("x", "counter", "timestep"),
            iteration,
            "diffusion",
            skips=("timesteps",),
        )
        denoised = View("denoised").reshaped(rows, count, 2 * info.channels)
        bindings = {
            "x": x,
            "timestep": View("timestep"),
            "embedded": View("embedded").reshaped(rows, count, info.head_width),
            "denoised": denoised,
        }
        step: Arguments = {
            "denoised": denoised,
            "coefficients": View("coefficients"),
            "counter": View("counter"),
            "timestep": View("timestep"),
            "seeds": View("seeds"),
            "positions": positions,
            "parameters": View("parameters", iteration),
            "x": x,
            "error": View("error"),
        }
        yield Repeat(
            len(taken),
            (
                Run("head", bindings, iteration),
                Launch(
                    "diffusion_step",
                    step,
                    ("x", "error"),
                    iteration,
                    "diffusion",
                    skips=("coefficients",),
                ),
                Launch(
                    "advance",
                    state,
                    ("counter", "timestep"),
                    iteration,
                    "diffusion",
                    skips=("timesteps",),
                ),
            ),
            iteration,
        )
        sampled = View("sampled", iteration).reshaped(key.batch, count, info.channels)
        yield Copy(sampled, x[: key.batch], iteration, "diffusion")
        index = View("ranks")[:count]
        yield self._gathered(sampled, index, known, known + count, iteration)
