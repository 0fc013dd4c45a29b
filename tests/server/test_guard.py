"""Who may ask, and how much: hosts, origins, keys, sizes, and the headers of every answer."""

from __future__ import annotations

import base64
import http.client
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.serving import KEY, Served, opening, serving

from fewstep.runtime.errors import FewstepError, RequestError
from fewstep.server import app as app_module
from fewstep.server import openai_api
from fewstep.server.guard import MAX_BODY, MAX_UPLOAD, Access

_IMAGE = "/v1/images/generations"


def _allowed(access: Access, headers: Mapping[str, str], method: str = "POST") -> int:
    from fewstep.server.errors import status_of

    try:
        access.check(method, _IMAGE, headers)
    except FewstepError as error:
        return status_of(error)
    return 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("evil.example@127.0.0.1", 200),  # what is before @ is no host
        ("127.0.0.1@evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_loopback_server_answers_to_its_own_names_alone(host: str, status: int) -> None:
    assert _allowed(Access(), {"host": host}) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:8000", 200),
        ("http://127.0.0.1:9000", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("https://page.example", 200),
        ("https://page.example.evil.example", 403),
    ],
)
def test_pages_of_other_origins_may_make_nothing(origin: str | None, status: int) -> None:
    headers = {"host": "127.0.0.1:8000"} | ({"origin": origin} if origin else {})
    access = Access(origins=("https://page.example",))
    assert _allowed(access, headers) == status
    assert _allowed(access, headers, "GET") == 200  # which without CORS no page can read


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer  {KEY}", 200),
        ("Basic " + base64.b64encode(f"user:{KEY}".encode()).decode(), 200),
        ("Basic " + base64.b64encode(f":{KEY}".encode()).decode(), 200),
        ("Basic " + base64.b64encode(KEY.encode()).decode(), 401),
        ("Basic !", 401),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), 401),
        (f"Bearer {KEY} ", 200),
        (f"Bearer {KEY[:-1]}", 401),
        ("Bearer \xe9", 401),
        ("Basic \xe9", 401),
        ("Basic " + base64.b64encode(b"user:a:key").decode(), 401),
        (KEY, 401),
        ("", 401),
    ],
)
def test_a_key_is_a_bearers_or_a_password(authorization: str, status: int) -> None:
    access = Access("0.0.0.0", KEY)
    assert _allowed(access, {"host": "any", "authorization": authorization}) == status


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_a_key_may_have_any_characters(scheme: str) -> None:
    key = "schlüssel:日本"
    value = key.encode().decode("latin-1")
    if scheme == "Basic":
        value = base64.b64encode(f"user:{key}".encode()).decode()
    headers = {"host": "any", "authorization": f"{scheme} {value}"}
    assert _allowed(Access("0.0.0.0", key), headers) == 200


def test_a_server_with_a_key_is_open_to_probes_and_to_the_page_alone(keyed: Served) -> None:
    client = keyed.client
    for path in ("/health", "/ready"):
        assert client.get(path).status_code == 200
    for path in ("/metrics", "/v1/models", "/sdapi/v1/options", "/v1/", "/v1/models/tiny"):
        answer = client.get(path)
        assert answer.status_code == 401, path
        assert "Bearer" in answer.headers["www-authenticate"] and KEY not in answer.text
    assert keyed.post(_IMAGE, prompt="0").status_code == 401
    bearer = {"authorization": f"Bearer {KEY}"}
    assert client.post(_IMAGE, json={"prompt": "0"}, headers=bearer).status_code == 200
    options = client.get("/sdapi/v1/options", auth=("user", KEY))
    assert options.json()["sd_model_checkpoint"] == "tiny"


def test_a_wrong_key_is_told_apart_from_none(keyed: Served) -> None:
    for headers, said in (({}, "needs its key"), ({"authorization": "Bearer x"}, "not this")):
        answer = keyed.client.get("/v1/models", headers=headers)
        assert answer.status_code == 401 and said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)),
        *(("127.example.org", False), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, local: bool) -> None:
    assert Access(host).is_local == local


@pytest.mark.parametrize(
    "origin",
    ["foo", "https://", "https://a.example/page", "a.example", "ftp://a", "http://a@b", ""],
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(RequestError, match="origin of a page"):
        Access(origins=(origin,))


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        Access("0.0.0.0", "")


def test_all_origins_may_be_named() -> None:
    access = Access(origins=("*",))
    assert _allowed(access, {"host": "127.0.0.1", "origin": "https://any.example"}) == 200


def test_cors_is_for_the_origins_that_are_named(keyed: Served, served: Served) -> None:
    def preflight(server: Served, origin: str) -> Any:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        asked = "authorization, content-type, x-stainless-os"
        headers["access-control-request-headers"] = asked
        return server.client.options(_IMAGE, headers=headers)

    allowed = preflight(keyed, "https://page.example")
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-origin" not in preflight(keyed, "https://evil.example").headers
    assert "access-control-allow-origin" not in preflight(served, "https://page.example").headers
    own = {"origin": "https://page.example", "authorization": f"Bearer {KEY}"}
    answer = keyed.client.post(_IMAGE, json={"prompt": "0"}, headers=own)
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert "Retry-After" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/nothing", "/sdapi/v1/options"])
def test_every_answer_has_the_policy_of_the_page(served: Served, path: str) -> None:
    headers = served.client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe" not in policy and "*" not in policy
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "most"),
    [(_IMAGE, MAX_BODY), ("/v1/images/edits", MAX_UPLOAD), ("/sdapi/v1/img2img", MAX_UPLOAD)],
)
def test_bodies_have_a_limit_whether_they_say_their_length_or_not(
    served: Served, path: str, most: int
) -> None:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"))
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", str(most + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413  # before any of it came
    connection.close()
    form = path.endswith("edits")
    kind = "multipart/form-data; boundary=x" if form else "application/json"
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    parts = [head if form else b"", *[b"x" * (1 << 20)] * ((most >> 20) + 1)]
    answer = served.client.post(path, content=iter(parts), headers={"content-type": kind})
    assert answer.status_code == 413 and "MiB" in answer.text


def test_a_length_of_too_many_digits_is_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.client.base_url.port)) as connection:
        head = f"POST {_IMAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {'9' * 5_000}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(64).split()[1] in (b"400", b"413")


def test_a_websocket_is_refused(served: Served) -> None:
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    headers["sec-websocket-key"] = base64.b64encode(b"0" * 16).decode()
    assert served.client.get("/", headers=headers).status_code in (200, 403)


def test_answers_to_defects_have_all_headers(
    keyed: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*given: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(openai_api, "asked_of", broken)
    own = {"origin": "https://page.example", "authorization": f"Bearer {KEY}"}
    answer = keyed.client.post(_IMAGE, json={"prompt": "0"}, headers=own)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert "content-security-policy" in answer.headers
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_unknown_paths_and_methods_are_told_in_the_words_of_their_api(served: Served) -> None:
    unknown = served.client.get("/v1/images")
    assert unknown.status_code == 404 and unknown.json()["error"]["message"]
    method = served.client.get(_IMAGE)
    assert method.status_code == 405 and method.json()["error"]["type"] == "invalid_request_error"
    assert served.client.get("/sdapi/v1/cmd-flags").json()["detail"]
    for path in ("/v1/images/variations", "/v1/chat/completions", "/nothing"):
        answer = served.post(path)
        assert answer.status_code == 404 and answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/%2e%2e/app.py"])
def test_nothing_else_is_shown(served: Served, path: str) -> None:
    assert served.client.get(path).status_code == 404


def test_a_page_is_served_where_it_is(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<title>fewstep</title>")
    (page / "app.js").write_text("export {};")
    (tmp_path / "secret").write_text("secret")
    monkeypatch.setattr(app_module, "PAGE", page)
    with serving([opening(tiny_bundle)], Access("127.0.0.1", KEY)) as served:
        assert "<title>fewstep" in served.client.get("/").text
        script = served.client.get("/app.js")
        assert script.headers["content-type"].partition(";")[0].endswith("javascript")
        for path in ("/../secret", "/%2e%2e/secret", "/..%2fsecret", "//etc/passwd"):
            assert served.client.get(path).status_code == 404


# Health and metrics


def test_metrics_count_requests_images_and_stages(served: Served) -> None:
    def value(name: str) -> float:
        lines = served.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    images = 'fewstep_images_total{model="tiny"}'
    good = 'fewstep_http_requests_total{method="POST",route="/v1/images/generations",status="200"}'
    bad = 'fewstep_http_requests_total{method="POST",route="/v1/images/generations",status="400"}'
    stage = 'fewstep_stage_duration_seconds_count{model="tiny",stage="transformer"}'
    before = [value(each) for each in (images, good, bad, stage)]
    served.post(_IMAGE, prompt="0", n=3)
    served.post(_IMAGE, prompt="nothing")
    served.client.get("/a/path/of/no/route")
    after = [value(each) for each in (images, good, bad, stage)]
    assert [a - b for a, b in zip(after, before, strict=True)] == [3, 1, 1, 1]
    text = served.client.get("/metrics").text
    assert "/a/path" not in text and 'route="other"' in text
    assert 'fewstep_queue_requests{model="tiny"} 0.0' in text
    assert 'fewstep_model_ready{model="tiny"} 1.0' in text
    assert 'fewstep_batch_images_bucket{le="4.0",model="tiny"}' in text


def test_health_and_readiness(served: Served) -> None:
    for path in ("/health", "/ready"):
        assert served.client.head(path).status_code == 200
    assert served.client.get("/health").json()["status"] == "ok"
    ready = served.client.get("/ready").json()
    assert ready == {"ready": True, "models": {"tiny": True, "tiny VAR": True}}


def test_a_model_that_failed_fails_health(tiny_bundle: Path) -> None:
    with serving([opening(tiny_bundle, precision="int8")]) as served:
        health, ready = served.client.get("/health"), served.client.get("/ready")
        assert health.status_code == ready.status_code == 503
        assert "int8" in health.json()["models"]["tiny"]
        answer = served.post(_IMAGE, prompt="0")
        assert answer.status_code == 503 and answer.json()["error"]["type"] == "server_error"
