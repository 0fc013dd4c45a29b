"""AUTOMATIC1111's API: what its clients request, in the order in which they do.

The sequences are those of Open WebUI (``routers/images.py``) and of SwarmUI
(``AutoWebUIAPIAbstractBackend.cs``), read in their sources.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.serving import LONG_S, Served, gated, serving, until

from fewstep.runtime.generator import Generator


def _picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_what_open_webui_does(served: Served) -> None:
    """It verifies the address, lists models, sets one and sends back all options, and generates; a
    header is always there, with nothing in it where there is no key."""
    headers = {"authorization": "Basic"}
    client = served.client
    assert client.get("/sdapi/v1/options", headers=headers).status_code == 200
    models = client.get("/sdapi/v1/sd-models", headers=headers).json()
    assert [(each["title"], each["model_name"]) for each in models] == [
        ("tiny", "tiny"),
        ("tiny VAR", "tiny VAR"),
    ]
    options = client.get("/sdapi/v1/options", headers=headers).json()
    assert options["sd_model_checkpoint"] == "tiny"
    options["sd_model_checkpoint"] = "tiny VAR"
    assert client.post("/sdapi/v1/options", json=options, headers=headers).status_code == 200
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "tiny VAR"
    wanted = {"prompt": "1", "batch_size": 2, "width": 512, "height": 512}
    wanted |= {"negative_prompt": "blurry"}
    answer = client.post("/sdapi/v1/txt2img", json=wanted, headers=headers).json()
    assert [_picture(each).size for each in answer["images"]] == [(8, 8)] * 2
    assert json.loads(answer["info"])["sd_model_name"] == "tiny VAR"
    client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "tiny"})


def test_what_swarmui_does(served: Served, tiny_bundle: Path) -> None:
    """It asks for the model, then for samplers; to load a model it lists them and posts the title;
    an image is asked for with everything that it knows."""
    client = served.client
    assert isinstance(client.get("/sdapi/v1/options").json()["sd_model_checkpoint"], str)
    samplers = [each["name"] for each in client.get("/sdapi/v1/samplers").json()]
    assert {"cosine", "linear", "policy", "fixed"} <= {*samplers}
    titles = [each["title"] for each in client.get("/sdapi/v1/sd-models").json()]
    loaded = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": titles[0]})
    assert loaded.status_code == 200
    wanted = {
        "prompt": "bag",
        "negative_prompt": "",
        "seed": 12,
        "steps": 5,
        "width": 8,
        "height": 8,
        "batch_size": 1,
        "cfg_scale": 3.0,
        "subseed": -1,
        "subseed_strength": 0,
        "sampler_name": "linear",
    }
    answer = client.post("/sdapi/v1/txt2img", json=wanted).json()
    with Generator.open(tiny_bundle, threads=1) as generator:
        settings: dict[str, Any] = {"steps": 5, "guidance": 2, "schedule": "linear"}
        alone = generator.generate(class_ids=[2], seed=12, **settings)
    assert np.array_equal(np.asarray(_picture(answer["images"][0])), alone.images[0])


def test_a_sampler_that_is_no_schedule_is_passed_over_and_a_policy_decides(served: Served) -> None:
    for sampler in ("Euler", "policy"):
        fields = {"prompt": "0", "sampler_name": sampler, "cfg_scale": 7, "steps": 4}
        answer = served.post("/sdapi/v1/txt2img", **fields)
        assert answer.status_code == 200, answer.text


def test_info_says_what_an_image_was_made_of_and_so_does_the_image(served: Served) -> None:
    answer = served.post(
        "/sdapi/v1/txt2img", prompt="shirt", n_iter=3, seed=-1, override_settings={}, unknown=1
    ).json()
    info = json.loads(answer["info"])
    assert len(info["all_seeds"]) == len(info["infotexts"]) == len(answer["images"]) == 3
    assert info["seed"] == info["all_seeds"][0] and info["width"] == 8
    for image, seed, text in zip(
        answer["images"], info["all_seeds"], info["infotexts"], strict=True
    ):
        assert f"Seed: {seed}" in text and "Steps: 8" in text and text.startswith("shirt\n")
        picture = _picture(image)
        assert picture.text["parameters"] == text  # type: ignore[attr-defined]
    again = served.post("/sdapi/v1/txt2img", prompt="shirt", n_iter=3, seed=info["seed"]).json()
    assert again["images"] == answer["images"]


def test_one_request_may_name_another_model(served: Served) -> None:
    other = {"sd_model_checkpoint": "tiny VAR"}
    answer = served.post("/sdapi/v1/txt2img", prompt="0", override_settings=other)
    assert json.loads(answer.json()["info"])["sd_model_name"] == "tiny VAR"
    assert served.client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "tiny"


def test_progress_and_interrupt(tiny_bundle: Path) -> None:
    gate, answers = gated(tiny_bundle), list[dict[str, Any]]()
    with serving([gate], max_wait_s=LONG_S) as served:
        idle = served.client.get("/sdapi/v1/progress?skip_current_image=true").json()
        assert idle["progress"] == 0 and idle["state"]["job_count"] == 0

        def ask() -> None:
            answers.append(served.post("/sdapi/v1/txt2img", prompt="0", steps=6).json())

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert gate.entered.wait(LONG_S)
        threads[1].start()
        until(lambda: served.models.first.queued == 1)
        busy = served.client.get("/sdapi/v1/progress").json()
        assert busy["state"]["job_count"] == 2 and busy["state"]["sampling_steps"] == 6
        assert served.client.post("/sdapi/v1/interrupt").json() == {}
        gate.gate.set()
        for each in threads:
            each.join()
        assert [each["images"] for each in answers] == [[], []]
        assert served.client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
        assert len(served.post("/sdapi/v1/txt2img", prompt="0").json()["images"]) == 1


@pytest.mark.parametrize(
    ("path", "fields", "status", "said"),
    [
        ("txt2img", {"prompt": "hat"}, 400, "unknown class"),
        ("txt2img", {"prompt": ["0"]}, 400, "prompt must be a text"),
        ("txt2img", {"prompt": "0", "steps": 50}, 400, "steps must be 1 … 16"),
        ("txt2img", {"prompt": "0", "steps": "x"}, 400, "steps must be a number"),
        ("txt2img", {"prompt": "0", "steps": 10**400}, 400, "steps must be"),
        ("txt2img", {"prompt": "0", "cfg_scale": 10**400}, 400, "guidance must be"),
        ("txt2img", {"prompt": "0", "batch_size": 9, "n_iter": 9}, 400, "n must be 1 … 16"),
        ("txt2img", {"prompt": "0", "batch_size": 0}, 400, "batch_size must be"),
        ("txt2img", {"prompt": "0", "override_settings": {"sd_model_checkpoint": "x"}}, 404, "'x'"),
        ("options", {"sd_model_checkpoint": "x"}, 404, "does not exist"),
        ("options", {"sd_model_checkpoint": 1}, 400, "title of a model"),
        ("img2img", {"prompt": "0", "init_images": ["a"]}, 400, "cannot edit pictures"),
        ("interrogate", {}, 404, "Not Found"),
    ],
)
def test_errors_have_the_web_uis_form(
    served: Served, path: str, fields: dict[str, Any], status: int, said: str
) -> None:
    answer = served.post(f"/sdapi/v1/{path}", **fields)
    assert answer.status_code == status
    assert said in answer.json()["detail"] and answer.json().keys() >= {"error", "errors"}
