"""The sample's bundle, exported to ``data/bundle`` from the committed weights when needed.

python samples/fashion/sample_bundle.py        # prints where it is
"""

from __future__ import annotations

from pathlib import Path

from data import DATA_FILE
from training import FOLDER, WEIGHTS

from fewstep.export.masked import Checkpoints, export_masked
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.files import sha256

CONFIG = FOLDER / "config.json"
BUNDLE = DATA_FILE.with_name("bundle")
CHECKPOINTS = Checkpoints(
    transformer=WEIGHTS / "transformer.safetensors",
    tokenizer=WEIGHTS / "tokenizer.safetensors",
    config=CONFIG,
    tuned=tuple(sorted(WEIGHTS.glob("policy-*.safetensors"))),
    untrained_policy=True,
)


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
    return export_masked(
        "adanat",
        CHECKPOINTS,
        out,
        overwrite=True,
        command="python samples/fashion/sample_bundle.py",
    )


def is_current(bundle: Bundle) -> bool:
    """Whether the bundle was made from the present weights and configuration."""
    files = {
        "transformer": CHECKPOINTS.transformer,
        "tokenizer": CHECKPOINTS.tokenizer,
        "config": CONFIG,
        **{f"tuned/{path.name}": path for path in CHECKPOINTS.tuned},
    }
    made_from = {name: info.sha256 for name, info in bundle.manifest.provenance.checkpoints.items()}
    return made_from == {name: sha256(path) for name, path in files.items()}


if __name__ == "__main__":
    sample_bundle()
    print(BUNDLE)
