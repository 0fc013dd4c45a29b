"""The sample's bundles, exported from the committed weights when needed.

python samples/fashion/sample_bundle.py          # prints data/bundle, the masked model
python samples/fashion/sample_bundle.py --var    # prints data/var-bundle
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data import DATA_FILE
from training import FOLDER, WEIGHTS

from fewstep.export.demo import sample_checkpoints
from fewstep.export.flow import export
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.files import sha256

BUNDLE = DATA_FILE.with_name("bundle")
VAR_BUNDLE = DATA_FILE.with_name("var-bundle")


def sample_bundle(out: Path = BUNDLE) -> Bundle:
    """The bundle of the present weights and configuration at ``out``."""
    return _current("adanat", sample_checkpoints(FOLDER), out)


def var_bundle(out: Path = VAR_BUNDLE) -> Bundle:
    """The same of the VAR."""
    return _current("var", var_checkpoints(), out)


def var_checkpoints() -> dict[str, Path]:
    """What to export of the VAR."""
    return {
        "transformer": WEIGHTS / "var_transformer.safetensors",
        "tokenizer": WEIGHTS / "var_tokenizer.safetensors",
        "config": FOLDER / "var_config.json",
    }


def _current(form: str, given: dict[str, Any], out: Path) -> Bundle:
    if out.exists():
        try:
            bundle = Bundle.read(out)
        except BundleError as error:
            print(f"exporting again: {error}")
        else:
            if _is_current(bundle, given):
                return bundle
    command = "python samples/fashion/sample_bundle.py"
    return export(form, given, out, overwrite=True, command=command)


def _is_current(bundle: Bundle, given: dict[str, Any]) -> bool:
    """Whether the bundle was made from the present weights and configuration."""
    files = {name: given[name] for name in ("transformer", "tokenizer", "config")}
    files |= {f"tuned/{path.name}": path for path in given.get("tuned_policy", ())}
    made_from = {name: info.sha256 for name, info in bundle.manifest.provenance.checkpoints.items()}
    return made_from == {name: sha256(path) for name, path in files.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--var", action="store_true", help="the VAR's")
    made = var_bundle() if parser.parse_args().var else sample_bundle()
    print(made.path)
