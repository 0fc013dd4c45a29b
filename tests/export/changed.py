"""The tiny checkpoints, changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def configured(files: dict[str, Any], folder: Path, **changes: Any) -> dict[str, Any]:
    """The same files with other entries in the configuration; ``None`` drops one."""
    config = json.loads(files["config"].read_text()) | changes
    path = folder / "changed.json"
    path.write_text(json.dumps({key: each for key, each in config.items() if each is not None}))
    return files | {"config": path}
