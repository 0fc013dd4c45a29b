"""The sample's bundle, exported to ``data/bundle`` from the committed weights when needed.

python samples/fashion/sample_bundle.py        # prints where it is
"""

from __future__ import annotations

from pathlib import Path

from data import DATA_FILE
from training import FOLDER

from fewstep.export.demo import sample_checkpoints
from fewstep.export.flow import export
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.files import sha256

BUNDLE = DATA_FILE.with_name("bundle")


def sample_bundle(out: Path = BUNDLE) -> Bundle:
    """The bundle of the present weights and configuration at ``out``."""
    if out.exists():
        try:
            bundle = Bundle.read(out)
        except BundleError as error:
            print(f"exporting again: {error}")
        else:
            if is_current(bundle):
                return bundle
    command = "python samples/fashion/sample_bundle.py"
    return export("adanat", sample_checkpoints(FOLDER), out, overwrite=True, command=command)


def is_current(bundle: Bundle) -> bool:
    """Whether the bundle was made from the present weights and configuration."""
    given = sample_checkpoints(FOLDER)
    files = {name: given[name] for name in ("transformer", "tokenizer", "config")}
    files |= {f"tuned/{path.name}": path for path in given["tuned_policy"]}
    made_from = {name: info.sha256 for name, info in bundle.manifest.provenance.checkpoints.items()}
    return made_from == {name: sha256(path) for name, path in files.items()}


if __name__ == "__main__":
    sample_bundle()
    print(BUNDLE)
