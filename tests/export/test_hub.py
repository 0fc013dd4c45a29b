"""Files of the Hub: addresses, the cache, offline, revisions, tokens, and every way to fail.

The library reads its environment once, so every fetch is a process of its own, against a hub on
this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.export.hub_server import LocalHub, commit_of, serving

from fewstep.export import hub
from fewstep.export.hub import HubFile
from fewstep.runtime.errors import CheckpointError, MissingDependencyError

_ROOT = Path(__file__).parents[2]
_FETCH = """
import sys
from fewstep.export import hub
from fewstep.runtime.errors import CheckpointError
try:
    print(hub.fetch(hub.parse(sys.argv[1])))
except CheckpointError as error:
    sys.exit(f"error: {error}")
"""
_CONTENT = bytes(range(256)) * 4096
_FILE = "hf://someone/model/weights/net.pth"

Fetch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def server() -> Iterator[LocalHub]:
    with serving() as running:
        running.add("someone/model", "weights/net.pth", _CONTENT)
        yield running


@pytest.fixture
def fetch(server: LocalHub, tmp_path: Path) -> Fetch:
    """Fetch an address in a process with a cache of its own, and environment variables."""

    def run(address: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment = kept | {
            "PYTHONPATH": os.pathsep.join(str(_ROOT / name) for name in ("export", "runtime")),
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "NO_PROXY": "*",
        }
        return subprocess.run(
            [sys.executable, "-c", _FETCH, address],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def _error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 1000
    return done.stderr


def test_a_file_is_fetched_once(server: LocalHub, fetch: Fetch, tmp_path: Path) -> None:
    first = fetch(_FILE)
    path = Path(first.stdout.strip())
    assert (first.returncode, first.stderr) == (0, "")
    assert path.read_bytes() == _CONTENT
    assert path.name == "net.pth"
    assert path.is_relative_to(tmp_path / "hf")
    assert server.methods() == ["HEAD", "GET"]
    assert fetch(_FILE).stdout == first.stdout
    assert server.methods() == ["HEAD"]


def test_what_is_cached_is_there_offline(server: LocalHub, fetch: Fetch) -> None:
    assert "HF_HUB_OFFLINE is set" in _error(fetch(_FILE, HF_HUB_OFFLINE="1"))
    assert server.methods() == []
    online = fetch(_FILE).stdout
    server.asked.clear()
    assert fetch(_FILE, HF_HUB_OFFLINE="1").stdout == online
    assert server.methods() == []
    assert fetch(_FILE, HF_ENDPOINT="http://127.0.0.1:9").stdout == online


def test_revisions(server: LocalHub, fetch: Fetch) -> None:
    server.add("someone/model", "weights/net.pth", b"earlier", "v1")
    for address in (f"{_FILE}@v1", "hf://someone/model@v1/weights/net.pth"):
        assert Path(fetch(address).stdout.strip()).read_bytes() == b"earlier"
    assert Path(fetch(f"{_FILE}@{commit_of('main')}").stdout.strip()).read_bytes() == _CONTENT


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://someone/model/other.pth", "no such file; see"),
        ("hf://someone/other/net.pth", "no such repository, or a private one"),
        ("hf://guarded/model/net.pth", "access is gated; ask for it at"),
        (f"{_FILE}@v2", "no such revision"),
        ("hf://some--one/model/net.pth", "no name of a repository"),
        ("hf://someone/net.pth", "expected hf://OWNER/REPO/PATH/FILE[@REVISION]"),
        ("https://example.org/net.pth", "download the file and pass its path"),
    ],
)
def test_errors_say_what_to_do(server: LocalHub, fetch: Fetch, address: str, message: str) -> None:
    server.gated.add("guarded/model")
    error = _error(fetch(address))
    assert message in error
    assert address.partition("@")[0] in error


@pytest.mark.slow  # the library tries for 20 s
def test_no_network(fetch: Fetch) -> None:
    error = _error(fetch(_FILE, HF_ENDPOINT="http://127.0.0.1:9"))
    assert "http://127.0.0.1:9 does not answer" in error
    assert "pass the path of a copy" in error


def test_a_cache_that_cannot_be_written(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = _error(fetch(_FILE, HF_HOME=str(tmp_path / "file")))
    assert "set HF_HOME to a folder with room" in error


def test_an_interrupted_download_goes_on(server: LocalHub, fetch: Fetch) -> None:
    server.cuts = 2
    done = fetch(_FILE)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).read_bytes() == _CONTENT


def test_half_a_file_is_never_taken(server: LocalHub, fetch: Fetch) -> None:
    server.add("someone/small", "net.pth", b"x")  # its half is nothing, so that attempts run out
    server.cuts = 100
    assert "try again" in _error(fetch("hf://someone/small/net.pth"))
    server.cuts = 0
    done = fetch("hf://someone/small/net.pth")
    assert Path(done.stdout.strip()).read_bytes() == b"x"


def test_the_users_token_is_sent(server: LocalHub, fetch: Fetch) -> None:
    server.gated.add("someone/model")
    assert "gated" in _error(fetch(_FILE))
    assert fetch(_FILE, HF_TOKEN="hf_secret").returncode == 0
    assert server.asked[-1][2]["authorization"] == "Bearer hf_secret"


def test_requests_tell_nothing_unless_the_user_lets_them(server: LocalHub, fetch: Fetch) -> None:
    fetch(_FILE)
    fetch(_FILE, HF_HUB_DISABLE_TELEMETRY="0")
    quiet, told = (headers["user-agent"] for _, _, headers in (server.asked[0], server.asked[-1]))
    assert quiet.startswith("fewstep/")
    assert "torch/" not in quiet
    assert "torch/" in told
    assert all("/resolve/" in path for _, path, _ in server.asked[:2])


def test_the_users_progress_bars_stand(fetch: Fetch) -> None:
    for value in ("0", "1"):
        done = fetch(_FILE, HF_HUB_DISABLE_PROGRESS_BARS=value)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://a/b/c.pth", HubFile("a/b", "c.pth")),
        ("hf://a/b/c/d.pth@v1.0", HubFile("a/b", "c/d.pth", "v1.0")),
        ("hf://a/b/c.pth@refs/pr/1", HubFile("a/b", "c.pth", "refs/pr/1")),
        ("hf://a/b@v1/c/d.pth", HubFile("a/b", "c/d.pth", "v1")),
        ("hf://a/b/x@y.pth@v1", HubFile("a/b", "x@y.pth", "v1")),
        (
            "https://huggingface.co/a/b/resolve/main/c/d.pth?download=true",
            HubFile("a/b", "c/d.pth"),
        ),
        ("https://huggingface.co/a/b/blob/v1/d.pth", HubFile("a/b", "d.pth", "v1")),
    ],
)
def test_addresses(address: str, expected: HubFile) -> None:
    assert hub.parse(address) == expected
    assert hub.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://a", "hf://a/b", "hf://a/b/", "hf://a/b/c/", "hf://a/b/c.pth@", "hf://a//c.pth"]
    + ["hf://a/b/../c.pth", "hf://@v1", "ftp://a/b/c.pth", "https://huggingface.co/a/b"],
)
def test_what_is_no_file_is_refused(address: str) -> None:
    with pytest.raises(CheckpointError, match="OWNER/REPO/PATH/FILE"):
        hub.fetch(hub.parse(address))


def test_paths_are_no_addresses(tmp_path: Path) -> None:
    assert not hub.is_address(tmp_path)
    assert not hub.is_address("hf/net.pth")


def test_the_library_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"huggingface_hub .*fewstep\[export\]"):
        hub.fetch(hub.parse(_FILE))
