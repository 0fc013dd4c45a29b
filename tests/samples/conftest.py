"""Makes the scripts of ``samples/fashion`` importable, as they are for one another."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "samples" / "fashion"))
