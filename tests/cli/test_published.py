"""Published models on the command line: the list, and from a name to a bundle.

The models are tiny stand-ins: a list of their own, on a hub on this machine and in a folder.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.export.hub_server import LocalHub, serving

if TYPE_CHECKING:
    from tests.conftest import Terminal

_ROOT = Path(__file__).parents[2]
_MAIN = """
import os, pathlib
from fewstep.export import published
published.DATA = pathlib.Path(os.environ["PUBLISHED"])
from fewstep.cli import main
main()
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    folders = [_ROOT, *(_ROOT / name for name in ("export", "runtime", "calibration"))]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    paths = {"PYTHONPATH": os.pathsep.join(map(str, folders)), "NO_PROXY": "*"}
    code = ["-c", _MAIN] if "PUBLISHED" in variables else ["-m", "fewstep"]
    return subprocess.run(
        [sys.executable, *code, *map(str, arguments)],
        env=kept | paths | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_models_fit_80_columns() -> None:
    shown = _run("models", COLUMNS="80")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    models = json.loads((_ROOT / "export/fewstep/export/published.json").read_text())["models"]
    names = {each["name"] for each in models}
    rows = [line.split() for line in lines if {*line.split()[:1]} & names]
    forms = [row[1] for row in rows]
    assert {row[0] for row in rows} == names
    assert len(rows) == len(models) and len(lines) < 2 * len(models)  # a line a model
    assert [form for form, _ in itertools.groupby(forms)] == [*dict.fromkeys(forms)]
    for part in ("194 M", "2.86", "MIT"):
        assert part in shown.stdout


def test_models_as_json(fewstep: Terminal) -> None:
    models = json.loads(fewstep("models", "--json").out)["models"]
    first = next(each for each in models if each["name"] == "adanat-l-imagenet")
    assert (first["form"], first["steps"], first["fid"]) == ("adanat", 8, 2.86)
    assert first["files"].keys() == {"transformer", "tokenizer", "policy"}
    one = json.loads(fewstep("models", "muse-cc3m", "--json").out)["models"]
    assert [each["name"] for each in one] == ["muse-cc3m"]


def test_one_model_with_its_addresses(fewstep: Terminal) -> None:
    shown = fewstep("models", "adanat-cc3m")
    assert "hf://nzl-thu/MUSE/assets/ckpts/cc3m-285000.ckpt/nnet_ema.pth" in shown.out
    assert "https://drive.google.com/" in shown.out
    assert "fewstep export adanat-cc3m --from FOLDER" in shown.out
    for part in ("nnet_ema.pth", "2,015 MB", "by hand", "https://github.com/LeapLabTHU/AdaNAT"):
        assert part in shown.out
    unknown = fewstep("models", "adanat-l-imagnet")
    assert unknown.code == 1
    assert "Did you mean 'adanat-l-imagenet'?" in unknown.err


def test_export_lists_forms_and_models(fewstep: Terminal) -> None:
    shown = fewstep("export", "--help").out
    for name in ("adanat", "maskgit", "adanat-l-imagenet", "muse-cc3m"):
        assert name in shown.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adanat-l-imagenet"], "nnet_ema.pth (https://drive.google.com/"),
        (["adanat-l-imagenet"], "pass --from FOLDER"),
        (["adanat-l-imagenet", "--from", "."], ". does not hold them"),
        (["adanat-l-imagenet", "--from", "nowhere"], "nowhere is no folder"),
        (["adanat-l-imagnet"], "Did you mean 'adanat-l-imagenet'?"),
        (["hf://a/b/c.pth"], "fewstep export maskgit --transformer hf://a/b/c.pth"),
        (
            ["maskgit", "--transformer", "a", "--tokenizer", "b", "--out", "c"]
            + ["--contact-sheet", "{file}/x.png"],
            "cannot write",
        ),
        (["amused", "--folder", "hf://a", "--out", "c"], "hf://OWNER/REPO[/FOLDER]"),
        (["maskgit", "--transformer", "hf://a/b", "--tokenizer", "c", "--out", "d"], "hf://OWNER"),
        (["maskgit", "--transformer", "hf://a/b/c", "--tokenizer", "d", "--out", "{file}"], "exis"),
    ],
)
def test_errors_are_one_line_and_come_before_any_work(
    fewstep: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    outcome = fewstep("export", *(each.format(file=tmp_path / "file") for each in arguments))
    assert outcome.code == 1
    assert (outcome.err.count("error: "), outcome.err.count("\n")) == (1, 1)
    assert message in outcome.err
    assert len(outcome.err) < 2000
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def stand_in(
    tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> Iterator[tuple[LocalHub, Path, Run]]:
    """A hub with a tiny model, a folder with its other files, and ``fewstep`` that knows it."""
    with serving() as hub:
        names = {name: Path(path).name for name, path in tiny_checkpoints.items()}
        files: dict[str, Any] = {name: {"names": [file]} for name, file in names.items()}
        for name in ("transformer", "config"):
            hub.add("someone/tiny", f"assets/{names[name]}", tiny_checkpoints[name].read_bytes())
            files[name]["hub"] = f"hf://someone/tiny/assets/{names[name]}"
        model = {"name": "tiny-adanat", "form": "adanat", "summary": "Tiny", "files": files}
        published = tmp_path / "published.json"
        published.write_text(json.dumps({"models": [model | {"page": "https://example.org"}]}))
        folder = tmp_path / "downloads"
        folder.mkdir()
        for name in ("tokenizer", "policy"):
            shutil.copy(tiny_checkpoints[name], folder)

        def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
            hub_variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
            return _run(*arguments, PUBLISHED=str(published), **hub_variables | variables)

        yield hub, folder, run


@pytest.mark.slow
def test_from_a_name_to_a_bundle(stand_in: tuple[LocalHub, Path, Run], tmp_path: Path) -> None:
    hub, folder, fewstep = stand_in
    out = tmp_path / "made here" / "bundle"
    absent = fewstep("export", "tiny-adanat", "--out", out)
    assert absent.returncode == 1
    assert "tiny-adanat needs vqgan.ckpt; ckpt_policy.pth" in absent.stderr
    made = fewstep("export", "tiny-adanat", "--from", folder, "--out", out)
    assert made.returncode == 0, made.stderr
    assert hub.methods() == ["HEAD", "GET"] * 2
    assert made.stdout.startswith(f"wrote {out}\n")
    manifest = json.loads((out / "bundle.json").read_text())
    assert manifest["family"] == "adanat"
    read = {name: each["file"] for name, each in manifest["provenance"]["checkpoints"].items()}
    assert read == {
        "transformer": "nnet_ema.pth",
        "tokenizer": "vqgan.ckpt",
        "policy": "ckpt_policy.pth",
        "config": "config.json",
    }
    commands = [line.removeprefix("next: ") for line in made.stdout.splitlines()[1:]]
    assert [shlex.split(each)[1] for each in commands] == ["verify", "generate"]
    for each in commands:
        program, *arguments = shlex.split(each)
        assert program == "fewstep"
        picture = ["--out", tmp_path / "x.png"] if arguments[0] == "generate" else []
        done = fewstep(*arguments, *picture)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_files_of_the_hub_in_any_option(
    stand_in: tuple[LocalHub, Path, Run], tmp_path: Path
) -> None:
    hub, folder, fewstep = stand_in
    place, out = "hf://someone/tiny/assets", tmp_path / "bundle"
    files: list[object] = ["--transformer", f"{place}/nnet_ema.pth@main", "--out", out]
    files += ["--config", f"{place}/config.json", "--tokenizer"]
    offline = fewstep("export", "maskgit", *files, folder / "vqgan.ckpt", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert hub.methods() == []
    fetched = fewstep("export", "maskgit", *files, "nowhere.ckpt")
    assert fetched.returncode == 1
    assert "nowhere.ckpt" in fetched.stderr
    assert "fetching hf://someone/tiny/assets/nnet_ema.pth@main" in fetched.stderr
    assert hub.methods() == ["HEAD", "GET"] * 2
    assert not out.exists()
    out.mkdir()
    again = fewstep("export", "maskgit", *files, folder / "vqgan.ckpt")
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert hub.methods() == [], "nothing is asked for where nothing can be made"
    out.rmdir()
    made = fewstep("export", "maskgit", *files, folder / "vqgan.ckpt", HF_HUB_OFFLINE="1")
    assert made.returncode == 0, made.stderr
    assert hub.methods() == []
