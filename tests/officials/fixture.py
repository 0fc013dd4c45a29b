"""What an official implementation was given and gave: a recording in a ``.npz`` file.

``cfg`` is a JSON text with the constructor's arguments and the runs. ``sd/KEY`` is a state dict
under its official keys; where a file has several networks, or parts of one, ``sd.NAME/KEY``.
``in/…`` are inputs and noise, ``out/…`` outputs.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_DATA = Path(__file__).parents[1] / "data"


class UnusableError(Exception):
    """A file that cannot be replayed; the message is one line."""


class _Recorded(dict[str, Any]):
    """What a file has, by name."""

    def __missing__(self, name: str) -> Any:
        raise UnusableError(f"lacks {name}")


@dataclass(frozen=True)
class Network:
    """The constructor's arguments and the state dict of one network."""

    arguments: dict[str, Any]
    state: dict[str, Array]

    def save(self, path: Path) -> Path:
        """Write the state dict alone, as most authors do."""
        return save(self.state, path)


def save(state: Mapping[str, Any], path: Path) -> Path:
    """Write a checkpoint as ``torch.save`` does; arrays become tensors."""
    import torch

    def tensors(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: tensors(each) for key, each in value.items()}
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    torch.save(tensors(state), path)
    return path


@dataclass(frozen=True)
class Fixture:
    """One recording: ``cfg`` read, and its other arrays by their keys."""

    path: Path
    cfg: dict[str, Any]
    arrays: Mapping[str, Array]

    @classmethod
    def read(cls, path: Path) -> Fixture:
        """Read a recording.

        Raises:
            UnusableError: it cannot be read, or is none.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            cfg = json.loads(str(arrays.pop("cfg")), object_hook=_Recorded)
        except OSError as error:
            raise UnusableError(f"cannot be read: {error.strerror or error}") from error
        except (AttributeError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise UnusableError("is no recording, an .npz file with a JSON text 'cfg'") from error
        if not isinstance(cfg, dict):
            raise UnusableError("is no recording: its 'cfg' is no JSON object")
        return cls(path, cfg, _Recorded(arrays))

    def __getitem__(self, key: str) -> Array:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def under(self, *rooms: str) -> dict[str, Array]:
        """Arrays whose keys begin with one of ``rooms``, by what follows; later rooms win."""
        return _Recorded(
            (key.removeprefix(room), value)
            for room in rooms
            for key, value in self.arrays.items()
            if key.startswith(room)
        )

    def runs(self, ending: str) -> list[str]:
        """The part of every key between ``out/`` and ``ending``: ``""`` or the run's name."""
        found = [key for key in self.arrays if key.startswith("out/") and key.endswith(ending)]
        return [key.removeprefix("out/").removesuffix(ending).rstrip("/") for key in found]

    def companion(self, name: str) -> Fixture:
        """The recording that this one builds on: beside it, or in ``tests/data``.

        Raises:
            UnusableError: it is in neither place.
        """
        for folder in (self.path.parent, _DATA):
            path = folder / f"{name}.npz"
            if path.is_file():
                return Fixture.read(path)
        raise UnusableError(f"builds on {name}.npz, which is neither beside it nor in tests/data")

    def network(self, *names: str, main: bool = False) -> Network:
        """A network by what it is called, with what this file changes of its companion's.

        Args:
            names: in ``cfg`` (also as ``NAME_from`` and ``NAME_args``) and in ``sd.NAME/``.
            main: whether ``sd/`` is its state dict, where there is no companion.

        Raises:
            UnusableError: the file does not say which, or the companion is absent.
        """
        said = [self.cfg.get(f"{name}{end}") for name in names for end in ("", "_from", "_args")]
        companion = next((each for each in said if isinstance(each, str)), None)
        arguments: dict[str, Any] = next((each for each in said if isinstance(each, dict)), {})
        own = self.under(*(f"sd.{name}/" for name in names))
        if companion is not None:
            base = self.companion(companion).network(*names, main=True)
            return Network({**base.arguments, **arguments}, {**base.state, **own})
        if main:
            own, arguments = own or self.under("sd/"), arguments or self.cfg
        if not own or not arguments:
            raise UnusableError(f"says nothing of its {names[0]}: no sd.{names[0]}/, no companion")
        return Network(dict(arguments), own)


def gumbel(arrays: Mapping[str, Array], stem: str, end: str = "") -> Array:
    """Recorded Gumbel noise, float32: ``STEM`` or ``STEM_f16``, or of uniforms ``u8_…``.

    Raises:
        UnusableError: there is none.
    """
    room, _, name = stem.rpartition("/")
    plain = name.removeprefix("gumbel").strip("_")
    for key in (f"{stem}_f16{end}", f"{stem}{end}"):
        if key in arrays:
            return arrays[key].astype(np.float32)
    for bits in (8, 16):
        key = "/".join(filter(None, (room, "_".join(filter(None, (f"u{bits}", plain)))))) + end
        if key in arrays:
            uniform = (arrays[key].astype(np.float64) + 0.5) / 2**bits
            return (-np.log(-np.log(uniform))).astype(np.float32)
    raise UnusableError(f"lacks the noise {stem}{end}")
