"""What a backend compiled of a graph, kept in a folder of the bundle.

A file that is damaged, or of another graph, version or CPU, is not used. One that cannot be
written costs time at the next start and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep.runtime.errors import FewstepError
from fewstep.runtime.files import replacing

FOLDER = "compiled"
_DIGEST = hashlib.sha256().digest_size


class CompiledCache:
    """One compiled graph in a file, ``NAME-HASH.bin``.

    Args:
        bundle: folder of the bundle.
        name: of the graph, and of how it is compiled; a later one takes the place of this.
        key: all that what is compiled depends on.
    """

    def __init__(self, bundle: Path, name: str, key: tuple[str, ...]) -> None:
        self._folder, self._name = bundle / FOLDER, name
        digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
        self._path = self._folder / f"{name}-{digest}.bin"

    def read(self) -> npt.NDArray[np.uint8] | None:
        """What is kept, mapped into memory: nothing is copied; ``None`` if there is nothing whole.

        The array can be written, which changes no file.
        """
        try:
            with self._path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError):  # an empty file cannot be mapped
            return None
        compiled = np.frombuffer(content, np.uint8)[:-_DIGEST]
        whole = hashlib.sha256(compiled.data).digest() == content[-_DIGEST:]
        return compiled if whole else None

    def write(self, compiled: io.BytesIO) -> None:
        """Keep this instead of what was kept before under the name, if the folder is writable."""
        content = compiled.getbuffer()
        with contextlib.suppress(FewstepError, OSError):
            self._folder.mkdir(exist_ok=True)
            with replacing(self._path) as temporary, temporary.open("wb") as file:
                file.write(content)
                file.write(hashlib.sha256(content).digest())
            for other in self._folder.glob(f"{self._name}-*.bin"):
                if other != self._path:
                    other.unlink(missing_ok=True)
