"""Folders of the Hub: addresses, which files are fetched, revisions, offline, and ways to fail.

As for files (``test_hub.py``), every fetch is a process of its own against a hub on this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.export.hub_server import LocalHub, serving

from fewstep.export import hub_folder
from fewstep.export.hub import HubFile
from fewstep.runtime.errors import CheckpointError

_ROOT = Path(__file__).parents[2]
_FETCH = """
import sys
from fewstep.export import hub_folder
from fewstep.runtime.errors import CheckpointError
for address in sys.argv[1:]:
    try:
        print(hub_folder.fetch(hub_folder.parse(address)))
    except CheckpointError as error:
        print(f"error: {error}")
"""
_READ = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vqvae/config.json",
    "vqvae/diffusion_pytorch_model.bin",
}
_LEFT = {
    "README.md",
    "assets/picture.png",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "vqvae/diffusion_pytorch_model.fp16.bin",
}

Fetch = Callable[..., list[str]]


@pytest.fixture
def server() -> Iterator[LocalHub]:
    with serving() as running:
        for name in sorted(_READ | _LEFT):
            running.add("someone/pipeline", name, name.encode())
        running.add("someone/pipeline", "text_encoder/config.json", b"earlier", "v1")
        running.add("someone/pictures", "a.png", b"x")
        running.add("guarded/model", "config.json", b"{}")
        running.gated.add("guarded/model")
        yield running


@pytest.fixture
def fetch(server: LocalHub, tmp_path: Path) -> Fetch:
    """Fetch addresses in a process with a cache of its own; a line each."""

    def run(*addresses: str, **variables: str) -> list[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment = kept | {
            "PYTHONPATH": os.pathsep.join(str(_ROOT / name) for name in ("export", "runtime")),
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "NO_PROXY": "*",
        }
        done = subprocess.run(
            [sys.executable, "-c", _FETCH, *addresses],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert len(lines) == len(addresses)
        return lines

    return run


def _names(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}


def test_what_an_export_reads_is_fetched_once(server: LocalHub, fetch: Fetch) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    (none,) = fetch("hf://someone/pipeline", **offline)
    assert "HF_HUB_OFFLINE is set and the folder is not in the cache" in none
    whole, part, old = map(
        Path,
        fetch(
            "hf://someone/pipeline",
            "hf://someone/pipeline/text_encoder",
            "hf://someone/pipeline/text_encoder@v1",
        ),
    )
    assert _names(whole) == _READ and part == whole / "text_encoder"
    assert (part / "config.json").read_bytes() == b"text_encoder/config.json"
    assert (old / "config.json").read_bytes() == b"earlier"
    server.asked.clear()
    assert fetch("hf://someone/pipeline", **offline) == [str(whole)]
    assert server.methods() == []


def test_errors_say_what_to_do(fetch: Fetch) -> None:
    messages = {
        "hf://someone/other": "no such repository, or a private one",
        "hf://someone/pipeline@v2": "no such revision",
        "hf://someone/pipeline/unet": "the repository has no such folder; see",
        "hf://someone/pictures": "the repository has no file that an export reads",
        "hf://guarded/model": "access is gated; ask for it at",
        "hf://some--one/model": r"expected hf://OWNER/REPO[/FOLDER][@REVISION]",
    }
    for (address, message), line in zip(messages.items(), fetch(*messages), strict=True):
        assert line.startswith(f"error: {address.partition('@')[0]}") and message in line


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://a/b", HubFile("a/b", "")),
        ("hf://a/b/", HubFile("a/b", "")),
        ("hf://a/b@v1", HubFile("a/b", "", "v1")),
        ("hf://a/b@refs/pr/1", HubFile("a/b", "", "refs/pr/1")),
        ("hf://a/b/c/d@v1", HubFile("a/b", "c/d", "v1")),
        ("hf://a/b@v1/c/d", HubFile("a/b", "c/d", "v1")),
        ("https://huggingface.co/a/b", HubFile("a/b", "")),
        ("https://huggingface.co/a/b/tree/main/c", HubFile("a/b", "c")),
    ],
)
def test_addresses(address: str, expected: HubFile) -> None:
    assert hub_folder.parse(address) == expected


@pytest.mark.parametrize("address", ["hf://", "hf://a", "hf://a/b@", "hf://a/b/../c", "ftp://a/b"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected hf://OWNER/REPO\[/FOLDER\]"):
        hub_folder.fetch(hub_folder.parse(address))
