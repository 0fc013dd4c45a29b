"""The sample's bundle as one file for a release: what ``fewstep demo --bundle`` takes.

python samples/fashion/release_asset.py dist    # dist/fewstep-sample-VERSION.zip, and its SHA-256

The bundle is exported anew, from the committed weights. It is dated by SOURCE_DATE_EPOCH (seconds,
1970 without it) and not by the clock, so the same commit gives the same bytes on the same machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from training import FOLDER

from fewstep import __version__
from fewstep.export.demo import FORM, sample_checkpoints
from fewstep.export.flow import export
from fewstep.runtime.files import sha256
from fewstep.runtime.packed import pack


def release_asset(out: Path) -> Path:
    """Make the file in a folder."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    created = datetime.fromtimestamp(epoch, timezone.utc).isoformat("T", "seconds")
    path = out / f"fewstep-sample-{__version__}.zip"
    with tempfile.TemporaryDirectory() as work:
        files = sample_checkpoints(FOLDER)
        bundle = export(FORM, files, Path(work) / "bundle", command="make sample-bundle")
        made = bundle.manifest.provenance.model_dump() | {"created": created}
        pack(bundle.update({}, provenance=made), path)
    return path


if __name__ == "__main__":
    made = release_asset(Path(sys.argv[1]))
    print(f"{sha256(made)}  {made}")
