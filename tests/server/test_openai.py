"""OpenAI's images API, by its own client: fields, events, errors as its exceptions."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from tests.serving import LONG_S, Gated, Served, gated, serving, until

from fewstep.cli.record import bundle_record, order_of, read_record
from fewstep.runtime.generator import Generator
from fewstep.server import openai_api
from fewstep.server.job import Step


def _client(served: Served, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, **options)


def _pixels(b64: str | None) -> np.ndarray:
    assert b64 is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB"))


@pytest.fixture(scope="module")
def alone(tiny_bundle: Path) -> Callable[..., np.ndarray]:
    """The images of the tiny bundle, made without a server."""
    kept: dict[str, np.ndarray] = {}

    def images(class_id: int, seeds: list[int], **settings: Any) -> np.ndarray:
        name = repr((class_id, seeds, settings))
        if name not in kept:
            with Generator.open(tiny_bundle, threads=1) as opened:
                ids = [class_id] * len(seeds)
                kept[name] = opened.generate(class_ids=ids, seed=seeds, **settings).images
        return kept[name]

    return images


def test_images_are_those_that_the_generator_makes(
    served: Served, alone: Callable[..., np.ndarray]
) -> None:
    answer = _client(served).images.generate(
        prompt="Bag", n=2, model="tiny", extra_body={"seed": 5, "steps": 4, "guidance": "0:2"}
    )
    assert answer.data is not None and answer.size == "8x8" and answer.output_format == "png"
    found = [_pixels(each.b64_json) for each in answer.data]
    assert np.array_equal(found, alone(2, [5, 6], steps=4, guidance="0:2"))
    assert [each.seed for each in answer.data] == [5, 6]  # type: ignore[attr-defined]
    told = answer.fewstep  # type: ignore[attr-defined]
    assert told["model"] == "tiny" and told["steps"] == 4
    assert {"total", "queue", "transformer"} <= told["timings_ms"].keys()
    assert np.shape(told["parameters"]) == (4, 2, len(told["parameter_names"]))
    assert [row[0][3] for row in told["parameters"]] == pytest.approx([0.5, 1, 1.5, 2])


def test_names_of_diffusers_are_taken_with_their_meaning(
    served: Served, alone: Callable[..., np.ndarray]
) -> None:
    theirs = {"seed": 1, "num_inference_steps": 3, "guidance_scale": 4}
    answer = _client(served).images.generate(prompt="0", extra_body=theirs)
    assert answer.data is not None
    wanted = alone(0, [1], steps=3, guidance=3)
    assert np.array_equal(_pixels(answer.data[0].b64_json), wanted[0])


def test_without_a_seed_one_is_drawn_that_makes_the_image_again(served: Served) -> None:
    first = served.post("/v1/images/generations", prompt="shoe").json()
    second = served.post("/v1/images/generations", prompt="shoe").json()
    seed = first["data"][0]["seed"]
    assert seed != second["data"][0]["seed"]
    again = served.post("/v1/images/generations", prompt="shoe", seed=seed).json()
    assert again["data"] == first["data"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(served: Served, kind: Any) -> None:
    answer = _client(served).images.generate(
        prompt="1", output_format=kind, output_compression=80, response_format="b64_json"
    )
    assert answer.data is not None and answer.data[0].b64_json is not None
    picture = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert picture.format == kind.upper() and picture.size == (8, 8)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_images_say_how_they_were_made(
    served: Served, tiny_bundle: Path, tmp_path: Path, kind: Any
) -> None:
    answer = _client(served).images.generate(
        prompt="Bag", n=2, output_format=kind, extra_body={"seed": 5, "steps": 4, "guidance": "0:2"}
    )
    assert answer.data is not None and answer.data[1].b64_json is not None
    file = tmp_path / f"image.{kind}"
    file.write_bytes(base64.b64decode(answer.data[1].b64_json))
    record = read_record(file)
    with Generator.open(tiny_bundle, threads=1) as opened:
        order = order_of(record, opened.model.info.condition, None)
        again = opened.generate(**order.take([0]), **record["settings"]).images
        assert record["bundle"] == bundle_record(opened.bundle) and order.seeds == (6,)
    if kind == "png":
        assert np.array_equal(_pixels(answer.data[1].b64_json), again[0])


def test_the_async_client_and_many_at_once(served: Served) -> None:
    async def every() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            asked = [
                client.images.generate(prompt="2", extra_body={"seed": seed}) for seed in range(6)
            ]
            return await asyncio.gather(*asked)

    answers = asyncio.run(every())
    seeds = [answer.data[0].seed for answer in answers]
    assert seeds == [*range(6)]
    alone = served.post("/v1/images/generations", prompt="2", seed=3).json()
    assert answers[3].data[0].b64_json == alone["data"][0]["b64_json"]


# Streams


def test_a_stream_shows_steps_and_ends_with_the_image(
    served: Served, alone: Callable[..., np.ndarray]
) -> None:
    stream = _client(served).images.generate(
        prompt="coat",
        n=2,
        stream=True,
        partial_images=3,
        extra_body={"seed": 4, "steps": 8},
    )
    events: list[Any] = list(stream)
    kinds = [each.type for each in events]
    assert kinds == ["image_generation.partial_image"] * 6 + ["image_generation.completed"] * 2
    partial, last = events[:6], events[6:]
    assert [each.partial_image_index for each in partial] == [0, 0, 1, 1, 2, 2]
    assert [each.fewstep["index"] for each in events] == [0, 1] * 4
    for each in events:
        assert (each.size, each.output_format, each.background) == ("8x8", "png", "opaque")
        assert each.created_at > 1e9 and _pixels(each.b64_json).shape == (8, 8, 3)
    left = [np.sum(each.fewstep["undecided"]) for each in partial[::2]]
    assert left == sorted(left, reverse=True) and np.shape(partial[0].fewstep["undecided"]) == (
        4,
        4,
    )
    for each in partial:
        assert np.shape(each.fewstep["parameters"]) == (each.fewstep["step"] + 1, 1, 4)
        assert "of 8" in each.fewstep["caption"]
    found = [_pixels(each.b64_json) for each in last]
    assert np.array_equal(found, alone(3, [4, 5], steps=8))
    assert [each.fewstep["seed"] for each in last] == [4, 5]


def test_events_are_server_sent_ones(served: Served) -> None:
    answer = served.post("/v1/images/generations", prompt="0", stream=True, partial_images=1)
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.strip().split("\n\n")
    assert len(blocks) == 2
    for block in blocks:
        event, data = block.split("\n")
        assert event == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_an_image_beyond_the_first_batch_is_told_its_own_parameters(served: Served) -> None:
    stream = _client(served).images.generate(
        prompt="0", n=9, stream=True, partial_images=1, extra_body={"seed": 4}
    )
    events: list[Any] = list(stream)
    whole = np.array(events[-1].fewstep["parameters"])
    assert {each.fewstep["index"] for each in events[:9]} == {*range(9)}
    for each in events[:9]:
        index, steps = each.fewstep["index"], each.fewstep["step"] + 1
        assert np.array_equal(each.fewstep["parameters"], whole[:steps, index : index + 1])


def test_pixels_that_nobody_reads_do_not_pile_up() -> None:
    posted: list[Step] = []
    unsent = openai_api._Unsent()
    post = unsent.limiting(posted.append)
    pixels = np.zeros((1, 1 << 10, 1 << 12, 3), np.uint8)
    step = Step(0, 0, "", np.zeros((1, 1, 1), np.bool_), None, pixels)
    for _ in range(9):
        post(step)
        post(replace(step, pixels=None))
    assert len(posted) == 2
    for each in posted[:2]:
        unsent.sent(each)
    post(step)
    assert len(posted) == 3 and all(each.pixels is pixels for each in posted)


def test_all_steps_of_a_var_are_shown_where_more_are_wanted(served: Served) -> None:
    answer = served.post(
        "/v1/images/generations", model="tiny VAR", prompt="0", stream=True, partial_images=99
    )
    assert answer.text.count("event: image_generation.partial_image") == 4


def test_a_client_that_goes_ends_its_stream(tiny_bundle: Path) -> None:
    gate = gated(tiny_bundle)
    with serving([gate], max_wait_s=LONG_S) as served:
        worker = served.models.first
        fields = {"prompt": "0", "stream": True, "partial_images": 8}
        with served.client.stream("POST", "/v1/images/generations", json=fields) as answer:
            assert answer.status_code == 200 and gate.entered.wait(LONG_S)
            (job,) = worker.running
        until(lambda: job.gone)
        gate.gate.set()
        until(lambda: not worker.running)
        assert job.future.exception() is not None  # it stopped after the first step
        assert served.post("/v1/images/generations", prompt="0").status_code == 200


def test_a_client_that_goes_is_not_waited_for(tiny_bundle: Path) -> None:
    gate = gated(tiny_bundle)
    with serving([gate], max_wait_s=LONG_S) as served:
        worker, client = served.models.first, _client(served, timeout=0.5)
        first = threading.Thread(
            target=served.post, args=("/v1/images/generations",), kwargs={"prompt": "0"}
        )
        first.start()
        assert gate.entered.wait(LONG_S)
        with pytest.raises(openai.APITimeoutError):
            client.images.generate(prompt="1")
        until(lambda: worker.queued == 0)
        gate.gate.set()
        first.join()


# Models


def test_models_say_what_may_be_asked_of_them(served: Served) -> None:
    client = _client(served)
    listed = client.models.list().data
    assert [each.id for each in listed] == ["tiny", "tiny VAR"]
    assert all(each.object == "model" and each.owned_by == "fewstep" for each in listed)
    told = client.models.retrieve("tiny").fewstep  # type: ignore[attr-defined]
    assert told["classes"] == ["shirt", "shoe", "bag", "coat", "dress"]
    assert (told["class_ids"], told["text"], told["editable"]) == ([0, 1, 2, 3, 4], False, False)
    assert (told["image_size"], told["precision"], told["device"]) == ([8, 8], "fp32", "cpu")
    assert {"cosine", "linear", "policy"} <= {*told["schedules"]}
    assert told["settings"]["steps"]["type"] == "integer"
    assert told["settings"]["guidance"]["type"] == "ramp" and told["defaults"]["steps"] == 8
    assert told["settings"]["decoder"]["choices"] == ["full"]


def test_every_listed_choice_is_taken(served: Served) -> None:
    for model in served.client.get("/v1/models").json()["data"]:
        for name, setting in model["fewstep"]["settings"].items():
            for choice in setting.get("choices", ()):
                fields = {"model": model["id"], "prompt": "0", name: choice}
                answer = served.post("/v1/images/generations", **fields)
                assert answer.status_code == 200, (fields, answer.text)


# Errors


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": "trousers"}, "prompt", "unknown class 'trousers'"),
        ({"prompt": 3}, "prompt", "prompt must be a class or a text"),
        ({}, "prompt", "prompt must be"),
        ({"prompt": "0", "n": 17}, "n", "n must be a whole number, 1 … 16"),
        ({"prompt": "0", "n": True}, "n", "n must be"),
        ({"prompt": "0", "n": "x" * 5_000}, "n", "n must be"),
        ({"prompt": "0", "size": "512x512"}, "size", "size must be auto or 8x8"),
        ({"prompt": "0", "response_format": "url"}, "response_format", "b64_json"),
        ({"prompt": "0", "quality": "hd"}, "quality", "auto"),
        ({"prompt": "0", "background": "transparent"}, "background", "opaque"),
        ({"prompt": "0", "setps": 3}, "setps", "unknown parameter 'setps'"),
        ({"prompt": "0", "steps": 10**9}, "steps", "steps must be 1 … 16"),
        ({"prompt": "0", "guidance": 1e308}, "guidance", "guidance must be at most 1,000,000"),
        ({"prompt": "0", "guidance": 10**400}, "guidance", "guidance must be"),
        ({"prompt": "0", "steps": "many"}, "steps", "steps must be an integer"),
        ({"prompt": "0", "steps": 3, "num_inference_steps": 3}, "num_inference_steps", "one of"),
        ({"prompt": "0", "guidance_scale": [1]}, "guidance_scale", "a number"),
        ({"prompt": "0", "schedule": "/etc/schedule.json"}, None, "cannot name files"),
        ({"prompt": "0", "seed": -1}, "seed", "seed must be"),
        ({"prompt": "0", "seed": 2**64}, "seed", "seed must be"),
        ({"prompt": "0", "stream": "yes"}, "stream", "true or false"),
        ({"prompt": "x" * 4_001}, "prompt", "4,000 characters"),
        ({"prompt": "0", "negative_prompt": "rain"}, None, "negative is for text"),
        ({"prompt": "0", "model": ["tiny"]}, "model", "the name of a model"),
    ],
)
def test_bad_fields_are_told_in_one_line_with_their_name(
    served: Served, fields: dict[str, Any], param: str | None, said: str
) -> None:
    answer = served.post("/v1/images/generations", **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["param"] == param
    assert said in error["message"] and "\n" not in error["message"]
    assert len(error["message"]) < 2_000


def test_errors_are_the_exceptions_of_the_client(served: Served) -> None:
    client = _client(served)
    with pytest.raises(openai.NotFoundError, match="the model 'dall-e-2' does not exist"):
        client.images.generate(prompt="0", model="dall-e-2")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("other")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="unknown class"):
        client.images.generate(prompt="hat", stream=True)
    with pytest.raises(openai.BadRequestError, match="cannot edit") as no:
        client.images.edit(image=("a.png", b"a picture", "image/png"), prompt="0")
    assert no.value.code == "model_not_editable"


@pytest.mark.parametrize(
    "body",
    [
        *("", "{", "[]", "[" * 100_000, '{"prompt": "0", "steps": NaN}'),
        *('{"prompt": "0", "guidance": 1e999}', '{"prompt": "0", "guidance": -Infinity}'),
        *('{"\\ud800": 1}', '{"prompt": "0", "model": "\\uD800"}', b'{"prompt": "\xed\xa0\x80"}'),
        *('{"prompt": "0", "user": [' + "[]," * 30_000 + "[]]}", '{"seed": ' + "1" * 5_000 + "}"),
    ],
)
def test_bodies_that_are_no_requests(served: Served, body: str | bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = served.client.post("/v1/images/generations", content=body, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_a_text_may_have_characters_beyond_the_first_plane(served: Served) -> None:
    answer = served.post("/v1/images/generations", prompt="0", user="\U0001f600")
    assert answer.status_code == 200


def test_what_a_form_may_send_is_no_request(served: Served) -> None:
    answer = served.client.post("/v1/images/generations", data={"prompt": "0"})
    assert answer.status_code == 400 and "Content-Type" in answer.json()["error"]["message"]


def test_who_comes_when_there_is_no_room_is_told_when_to_come_again(tiny_bundle: Path) -> None:
    gate: Gated = gated(tiny_bundle)
    with serving([gate], max_wait_s=0) as served:
        first = threading.Thread(
            target=served.post, args=("/v1/images/generations",), kwargs={"prompt": "0"}
        )
        first.start()
        assert gate.entered.wait(LONG_S)
        worker = served.models.first
        for _ in range(40):
            worker._times.add(worker.running[0].kind, 1, 60_000.0)
        with pytest.raises(openai.RateLimitError) as busy:
            _client(served).images.generate(prompt="0")
        assert busy.value.code == "rate_limit_exceeded"
        assert 1 <= int(busy.value.response.headers["retry-after"]) <= 60
        text = served.client.get("/metrics").text
        assert 'fewstep_requests_refused_total{route="/v1/images/generations"} 1.0' in text
        gate.gate.set()
        first.join()
