"""Makes the scripts of the trained samples importable, as they are for one another."""

from __future__ import annotations

import sys
from pathlib import Path

for _sample in ("fashion", "emoji"):
    sys.path.append(str(Path(__file__).parents[2] / "samples" / _sample))
