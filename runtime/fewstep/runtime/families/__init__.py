"""Families: what turns a model and a request into a program, for one kind of generator.

A family is a folder here, or registers itself with :func:`register`. Everything else works
through :class:`Family`, :class:`~fewstep.runtime.program.Program` and the kinds of tensors,
from ``generate`` to calibration, and knows no family.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.decoders import FULL, Decoders
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, RequestError, choose
from fewstep.runtime.program import Program
from fewstep.runtime.prompts import Tokenizer
from fewstep.runtime.records import Strict, TensorInfo
from fewstep.runtime.settings import Settings

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.policies import PolicyRules

TensorKind = Literal[
    "tokens",
    "logits",
    "features",
    "action",
    "latents",
    "states",
    "noise",
    "cache",
    "image",
    "condition",
    "other",
]
"""What a tensor holds, which decides the metrics that it is compared by."""


class ModelInfo(Strict, ABC):
    """What a manifest says of the model; every family adds its own fields.

    ``kind`` names the family. ``image_size``: height and width in pixels. ``decoders``: smaller
    ones in the place of the graph ``decoder``, where the family lets requests choose.
    ``editable``: whether there is an image encoder (:mod:`fewstep.runtime.editing`).
    """

    kind: str
    image_size: tuple[PositiveInt, PositiveInt]
    condition: ClassCondition | TextCondition
    decoders: Decoders = {}
    editable: bool = False
    defaults: Settings

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width in pixels of the square that a token draws; of the whole picture, where
        tokens have no place in it."""
        return self.image_size

    @abstractmethod
    def tensor_shapes(self) -> dict[tuple[str, str], tuple[int | str, ...]]:
        """Shape of every (graph, tensor) that programs bind; a name stands for what may vary."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What ``fewstep inspect`` shows of the model: a heading and a text a line."""


class Tensors(Protocol):
    """Whatever knows the inputs and outputs of a graph: its manifest entry, or its engine."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]: ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]: ...


@dataclass(frozen=True)
class Model:
    """A bundle's model, as its family needs it.

    ``info``: the manifest's description. ``graphs``: inputs and outputs by graph name.
    ``arrays``: what :meth:`Family.arrays` read from the bundle. ``tokenizer``: of prompts, where
    the bundle reads any.
    """

    info: Any
    graphs: Mapping[str, Tensors]
    arrays: Mapping[str, Array] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None

    @property
    def outputs(self) -> dict[str, tuple[str, ...]]:
        """Names of the outputs of every graph."""
        return {name: tuple(graph.outputs) for name, graph in self.graphs.items()}


class Key(Hashable, Protocol):
    """What a program is made for; everything else of a request is its inputs.

    ``batch``: images decoded together.
    """

    @property
    def batch(self) -> int: ...


class Trace(Protocol):
    """How images came about, step by step; families add what they decide.

    ``tokens``-like decisions are arrays ``[T, B, …]`` by the names of the program's buffers.
    """

    @property
    def decisions(self) -> Mapping[str, Array]:
        """Arrays ``[steps, images, …]`` by buffer name."""
        ...

    @property
    def final(self) -> Array:
        """What the images were decoded from, ``[images, …]``."""
        ...


@dataclass(frozen=True)
class Preview:
    """An image before the last step: what to run, and what is not decided yet.

    ``graph`` with ``inputs`` (a row an image) gives ``output``, ``[B, 3, H, W]`` in 0 … 1.
    ``undecided [B, rows, columns]``: true where the picture may still change. ``caption``: of
    the step, for people.
    """

    graph: str
    inputs: Mapping[str, Array]
    output: str
    undecided: npt.NDArray[np.bool_]
    caption: str


class Family(ABC):
    """One kind of generator.

    ``Info`` describes a model of the family in the manifest, ``Settings`` what a request may set;
    its defaults are the defaults. ``kinds`` says what graph outputs hold, by tensor name.
    ``quantized``: the graphs that ``fewstep calibrate quantize`` quantizes, where a bundle has them
    and others are not asked for; the first is the one that policies, if there are any, follow from.
    ``weights_only``: those of them whose weights alone become int8, and nothing becomes fp8.
    ``policies``: what ``fewstep calibrate policy`` has to know of the policy networks that models
    of the family may have; ``None`` if they have none.
    """

    kind: str
    Info: type[ModelInfo]
    Settings: type[Settings]
    kinds: Mapping[str, TensorKind]
    quantized: tuple[str, ...]
    weights_only: frozenset[str] = frozenset()
    policies: PolicyRules | None = None

    def arrays(self, bundle: Bundle) -> Mapping[str, Array]:
        """What programs and inputs need of the bundle's own files.

        Raises:
            BundleError: a file is damaged.
        """
        return {}

    @abstractmethod
    def request(
        self,
        model: Model,
        condition: Array,
        seeds: npt.NDArray[np.uint64],
        settings: Any,
        edit: Mapping[str, Array] | None = None,
    ) -> Any:
        """A checked request for B images: a dataclass that has ``condition`` and ``seeds``.

        Where the family has text-conditional models it also has ``negative``, ``None`` at first,
        and where its models may have several decoders ``decoder``, the graph that was chosen.

        Args:
            model: the bundle's model.
            condition: class ids ``[B]`` int32; text states ``[B, L, D]`` float32, or ids of texts
                ``[B, tokens]`` int32, which the program then encodes.
            seeds: ``[B]``.
            settings: an instance of ``Settings``; the fields that the caller gave are set.
            edit: what of the images is kept, by names of the family's own; of an editable model
                also ``image``, float32 ``[B, 3, H, W]`` in 0 … 1, in the place of given tokens,
                beside what :meth:`region` or :meth:`variation` gave.

        Raises:
            RequestError: what the model cannot serve.
        """

    @abstractmethod
    def key(self, model: Model, request: Any, batch: int, *, constants: bool = True) -> Any:
        """The :class:`Key` of the program for a request.

        Args:
            model: the bundle's model.
            request: of :meth:`request`.
            batch: images decoded together.
            constants: whether the program may use what is computed once for all programs.
        """

    @abstractmethod
    def corners(self, model: Model, batch: int) -> Iterable[Any]:
        """Keys whose programs run every graph with the least and the most that ``batch`` images
        need; the first is what most requests ask for."""

    @abstractmethod
    def program(self, model: Model, key: Any) -> Program:
        """The program for a key. Pure: no device, no engine, no memory."""

    @abstractmethod
    def inputs(self, model: Model, request: Any, rows: slice) -> dict[str, npt.ArrayLike]:
        """What the host writes before a run, for some images of a request, by buffer name."""

    @abstractmethod
    def decisions(self, model: Model, key: Any, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """What a run decided, ``[steps, images, …]`` by buffer name, from its output buffers."""

    @abstractmethod
    def trace(self, model: Model, decisions: Mapping[str, Array]) -> Any:
        """The :class:`Trace` of whole requests."""

    @abstractmethod
    def preview(self, model: Model, trace: Any, step: int) -> Preview:
        """The images after a step, 0 … T − 1, by the full decoder."""

    @abstractmethod
    def rollouts(self, model: Model) -> dict[str, dict[str, Any]]:
        """Settings of the rollouts that are recorded as golden ones, by name."""

    def region(self, model: Model, pixels: npt.NDArray[np.bool_]) -> dict[str, Array]:
        """What ``edit`` has beside ``image`` where some pixels ``[B, H, W]`` are painted anew: a
        token is decided anew if any of them lies in its cell. Families whose tokens have several
        scales may ask for more of coarse ones.

        Raises:
            RequestError: models of the family are not edited, tokens have no place in the picture,
                or ``pixels`` does not fit.
        """
        raise RequestError(f"models of the family {self.kind} cannot edit pictures")

    def variation(
        self, model: Model, strength: float, seeds: npt.NDArray[np.uint64]
    ) -> dict[str, Array]:
        """What ``edit`` has beside ``image`` where a part of all tokens is decided anew.

        Args:
            model: the bundle's model.
            strength: above 0; at 1 all are.
            seeds: ``[B]``; where tokens are chosen at random, they decide.

        Raises:
            RequestError: models of the family are not edited, or another ``strength``.
        """
        raise RequestError(f"models of the family {self.kind} cannot edit pictures")

    def complete(self, model: Model, settings: Any) -> dict[str, Any]:
        """Settings that make the same request again, whatever the defaults become."""
        found: dict[str, Any] = settings.model_dump()
        return found

    def candidates(self, model: Model) -> tuple[dict[str, Any], ...]:
        """Settings that ``fewstep calibrate presets`` tries where it is given none: the defaults,
        the presets, and what families add."""
        presets: dict[str, dict[str, Any]] = getattr(model.info, "presets", {})
        return ({}, *presets.values())

    def choices(self, model: Model) -> dict[str, tuple[str, ...]]:
        """What settings that are words may be, by setting; families add their own."""
        info: Any = model.info
        known = {"preset": tuple(getattr(info, "presets", {})), "decoder": (FULL, *info.decoders)}
        return {name: each for name, each in known.items() if name in self.Settings.model_fields}

    def parameters(
        self, model: Model, request: Any, trace: Any
    ) -> tuple[tuple[str, ...], Array] | None:
        """What every step was told: names, and numbers ``[T, images, names]``.

        Args:
            model: the bundle's model.
            request: that was served.
            trace: of it; of steps that were not taken yet, rows hold nothing.
        """
        return None

    def notes(self, model: Model, request: Any) -> tuple[str, ...]:
        """What to know of the images of a request, a line each."""
        return ()

    def counted(self, model: Model, graph: str, inputs: Mapping[str, Array]) -> Array | None:
        """Positions ``[rows, N]`` whose outputs of a run matter; ``None`` if all do.

        Outputs of N positions have rows and positions as their first two dimensions, in any order;
        of others everything matters.
        """
        return None


_RESERVED = frozenset(
    (
        *("class_ids", "classes", "text", "text_file", "negative", "seed", "edit", "count"),
        *("batch", "runs"),
        *("backend", "device", "precision", "threads", "profile", "out", "out_path", "trace"),
        *("plan", "json_file", "as_json", "rollouts", "held_out", "method", "percentile", "keep"),
        *("auto", "cache", "repeat", "force", "wanted", "progress", "callback", "like", "columns"),
        *("scale", "resume", "shard", "report", "seconds", "graph", "best_of"),
        *("images", "updates", "smaller", "name", "weights"),
        *("image", "mask", "box", "outpaint", "strength", "fit", "blend"),
    )
)
"""Arguments of ``Generator.generate`` and of the commands that take settings."""

_registered: dict[str, Family] = {}


def register(family: Family) -> None:
    """Make a family that lives elsewhere known, in the place of any of its kind.

    Raises:
        ValueError: a setting has the name of an argument that every request or command has.
    """
    if taken := sorted(_RESERVED & family.Settings.model_fields.keys()):
        raise ValueError(f"settings of {family.kind} cannot be called {', '.join(taken)}")
    _registered[family.kind] = family


def kinds() -> tuple[str, ...]:
    """Kinds of all families that are known."""
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return tuple(sorted(found | _registered.keys()))


def family_of(kind: str) -> Family:
    """The family of a kind.

    Raises:
        BundleError: there is none.
    """
    if kind not in _registered:
        if kind not in kinds():
            raise BundleError(choose("kind of model", kind, kinds()))
        register(importlib.import_module(f"{__name__}.{kind}").FAMILY)
    return _registered[kind]


def quantized_graphs(bundle: Bundle, precision: str = "int8") -> tuple[str, ...]:
    """The graphs of a bundle that ``fewstep calibrate quantize`` can quantize to a precision: those
    that the family names, and in int8 those that give images."""
    family, graphs = family_of(bundle.manifest.model.kind), bundle.manifest.graphs
    named = [each for each in family.quantized if each in graphs]
    if precision == "fp8":
        return tuple(each for each in named if each not in family.weights_only)
    images = [n for n, graph in graphs.items() if "image" in map(family.kinds.get, graph.outputs)]
    return tuple(dict.fromkeys((*named, *images)))


def model_of(bundle: Bundle, graphs: Mapping[str, Tensors] | None = None) -> Model:
    """A bundle's model.

    Args:
        bundle: the bundle.
        graphs: its engines; its graphs in the manifest if ``None``.

    Raises:
        BundleError: a file that the family needs is damaged.
    """
    manifest = bundle.manifest
    arrays = family_of(manifest.model.kind).arrays(bundle)
    condition, tokenizer = manifest.model.condition, None
    if isinstance(condition, TextCondition) and condition.encoder is not None:
        tokenizer = Tokenizer(bundle, condition.encoder)
    graphs = manifest.graphs if graphs is None else graphs
    return Model(manifest.model, graphs, arrays, tokenizer)
