"""The sample's bundles, exported from the committed weights when needed.

python samples/fashion/sample_bundle.py             # prints data/bundle, the masked model
python samples/fashion/sample_bundle.py --cached    # prints data/cached-bundle, with cached context
python samples/fashion/sample_bundle.py --var       # prints data/var-bundle
python samples/fashion/sample_bundle.py --mar       # prints data/mar-bundle
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
CACHED_BUNDLE = DATA_FILE.with_name("cached-bundle")
VAR_BUNDLE = DATA_FILE.with_name("var-bundle")
MAR_BUNDLE = DATA_FILE.with_name("mar-bundle")


def sample_bundle(out: Path = BUNDLE) -> Bundle:
    """The bundle of the present weights and configuration at ``out``."""
    return _current("adanat", sample_checkpoints(FOLDER), out)


def cached_bundle(out: Path = CACHED_BUNDLE) -> Bundle:
    """The same with cached context, for local steps."""
    return _current("adanat", {**sample_checkpoints(FOLDER), "cached_context": True}, out)


def var_bundle(out: Path = VAR_BUNDLE) -> Bundle:
    """The same of the VAR."""
    return _current("var", var_checkpoints(), out)


def mar_bundle(out: Path = MAR_BUNDLE) -> Bundle:
    """The same of the MAR."""
    return _current("mar", mar_checkpoints(), out)


def var_checkpoints() -> dict[str, Any]:
    """What to export of the VAR."""
    return _checkpoints("var")


def mar_checkpoints() -> dict[str, Any]:
    """What to export of the MAR."""
    return _checkpoints("mar")


def _checkpoints(form: str) -> dict[str, Any]:
    return {
        "transformer": WEIGHTS / f"{form}_transformer.safetensors",
        "tokenizer": WEIGHTS / f"{form}_tokenizer.safetensors",
        "config": FOLDER / f"{form}_config.json",
        "encoder": True,
    }


def add_forms(parser: argparse.ArgumentParser) -> None:
    """Options for another bundle than the masked model's, as :func:`bundle_of` reads them."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cached", action="store_true", help="that with cached context")
    which.add_argument("--var", action="store_true", help="the VAR's")
    which.add_argument("--mar", action="store_true", help="the MAR's")


def bundle_of(given: argparse.Namespace) -> Bundle:
    """The bundle that options ask for."""
    if given.cached:
        return cached_bundle()
    if given.var:
        return var_bundle()
    return mar_bundle() if given.mar else sample_bundle()


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
    """Whether the bundle was made from the present weights and configuration, for editing too."""
    if not bundle.manifest.model.editable:
        return False
    names = ("transformer", "tokenizer", "config", "small_decoder")
    files = {name: given[name] for name in names if given.get(name) is not None}
    files |= {f"tuned/{path.name}": path for path in given.get("tuned_policy", ())}
    made_from = {name: info.sha256 for name, info in bundle.manifest.provenance.checkpoints.items()}
    return made_from == {name: sha256(path) for name, path in files.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_forms(parser)
    print(bundle_of(parser.parse_args()).path)
