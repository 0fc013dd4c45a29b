"""The cache of ranges: a JSON file with a table for every graph, and a checksum over its contents.

A table is used while graph, rollouts and options are those it was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fewstep.calibration.quantize.activations import Ranges
from fewstep.runtime.errors import RequestError
from fewstep.runtime.files import replacing
from fewstep.runtime.records import RangeMethod, Sha256

_REMEDY = "delete it, and it is made again"


class CalibrationTable(BaseModel):
    """Ranges of activations of one graph, and what they were measured on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tool: str
    graph_sha256: Sha256
    data_sha256: Sha256
    method: RangeMethod
    percentile: float | None
    ranges: Ranges

    def same_origin(self, other: CalibrationTable) -> str:
        """What differs from another table, but for the ranges; empty if nothing."""
        mine, others = (each.model_dump(exclude={"ranges"}) for each in (self, other))
        differing = [name for name in mine if mine[name] != others[name]]
        if self.ranges.keys() != other.ranges.keys():
            differing.append("tensors")
        return ", ".join(name.replace("_sha256", "") for name in differing)


class RangeCache:
    """The tables in a file, by graph; without a file none are there, and none are written.

    Raises:
        RequestError: the file is no cache, or its contents are not those that were written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._tables = {} if path is None else read(path)

    def find(self, graph: str, wanted: CalibrationTable) -> tuple[Ranges | None, str]:
        """The ranges of a graph, if they are of what is wanted, and what is to be said of them.

        Args:
            graph: its name.
            wanted: a table with any ranges of the tensors that are wanted.
        """
        known = self._tables.get(graph)
        if known is None:
            return None, ""
        if differing := known.same_origin(wanted):
            return None, f"the ranges in {self._path} were of another {differing}: made again"
        return known.ranges, f"ranges are those of {self._path}"

    def keep(self, graph: str, table: CalibrationTable) -> None:
        """Write a table beside those of other graphs.

        Raises:
            OutputError: the place is not writable, or the disk is full; an old file is as before.
        """
        self._tables[graph] = table
        if self._path is not None:
            write(self._path, self._tables)


def read(path: Path) -> dict[str, CalibrationTable]:
    """The tables in a file by graph; none if there is no file.

    Raises:
        RequestError: the file is no cache, or its contents are not those that were written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as a cache of ranges: {error}") from error
    try:
        content = json.loads(text)
        checksum = content.pop("checksum")
        found = _File.model_validate(content)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        what = "is no cache of ranges" if isinstance(error, ValidationError) else "is damaged"
        raise RequestError(f"the cache {path} {what}; {_REMEDY}") from error
    if checksum != found.checksum:
        raise RequestError(f"the cache {path} does not have its checksum; {_REMEDY}")
    return found.graphs


def write(path: Path, tables: Mapping[str, CalibrationTable]) -> None:
    """Write a file with tables, in the place of any that is there.

    Raises:
        OutputError: the place is not writable, or the disk is full; an old file is as before.
    """
    file = _File(graphs=dict(tables))
    content = file.model_dump(mode="json") | {"checksum": file.checksum}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class _File(BaseModel):
    """What is in the file, but for the checksum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    graphs: dict[str, CalibrationTable]

    @property
    def checksum(self) -> str:
        """Over all fields."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()
