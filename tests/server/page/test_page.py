"""The web page in Chromium, against a server of tiny bundles: what people do with it, and see."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, Route, expect
from tests.prompts import with_encoder
from tests.server.page.conftest import Open, downloaded, generate
from tests.serving import KEY, Served, opening, serving

from fewstep.runtime.generator import Generator


def test_pictures_grow_step_by_step(server: str, tiny_bundle: Path, open_page: Open) -> None:
    """Two of a class that was searched for; the slider goes back; what is saved is what the
    generator itself makes of the settings."""
    page = open_page(server)
    page.get_by_label("Class", exact=True).fill("dre")
    page.keyboard.press("Enter")
    page.get_by_label("Schedule").first.select_option("policy")
    page.get_by_label("Steps", exact=True).first.fill("4")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_role("spinbutton", name="Pictures").fill("2")
    generate(page)
    panel = page.locator(".panel").first
    first, second = panel.locator(".picture").all()
    assert [each.locator("img").get_attribute("alt") for each in (first, second)] == [
        "dress, seed 7",
        "dress, seed 8",
    ]
    slider, caption = panel.get_by_role("slider", name="Step"), panel.locator("output")
    assert slider.get_attribute("max") == "3"
    last = first.locator("img").get_attribute("src")
    slider.fill("0")
    expect(caption).to_have_text(re.compile("step 1 of 4: .* of 16 tokens decided"))
    assert first.locator("img").get_attribute("src") != last
    expect(first.locator("canvas")).to_be_visible()
    panel.get_by_label("Overlay").select_option("none")
    expect(first.locator("canvas")).to_be_hidden()

    saved = panel.get_by_role("link", name="Download dress, seed 8")
    assert saved.get_attribute("download") == "fewstep-dress-seed-8.png"
    with Generator.open(tiny_bundle, threads=1) as generator:
        wanted = generator("dress", seed=8, steps=4, schedule="policy").pixels[0]
    picture = downloaded(page, "Download dress, seed 8")
    np.testing.assert_array_equal(np.asarray(picture), wanted)


def test_cells_are_coloured_by_the_step_of_their_decision(
    server: str, tiny_bundle: Path, open_page: Open
) -> None:
    page = open_page(server)
    generate(page)
    page.get_by_label("Overlay").first.select_option("order")
    pixels = page.locator(".picture canvas").evaluate(
        "each => [...each.getContext('2d').getImageData(0, 0, each.width, each.height).data]"
    )
    colours = [*map(tuple, np.reshape(pixels, (16, 4)).tolist())]
    undecided: list[Any] = []
    with Generator.open(tiny_bundle, threads=1) as generator:
        generator("shirt", callback=lambda step, preview: undecided.append(preview.undecided[0]))
    steps = np.sum(undecided, 0).ravel().tolist()  # what is decided stays so
    assert len({*zip(steps, colours, strict=True)}) == len({*steps}) == len({*colours}) > 2


def test_a_prompt_where_the_model_takes_texts(
    tiny_text_bundle: Path, tmp_path: Path, open_page: Open
) -> None:
    bundle = Path(shutil.copytree(tiny_text_bundle, tmp_path / "texts"))
    with_encoder(bundle)
    with serving([opening(bundle)]) as found:
        page = open_page(f"{found.url}/")
        expect(page.get_by_label("Class", exact=True)).to_be_hidden()
        page.get_by_label("Prompt").fill("a red dog")
        page.get_by_label("What to lead away from").fill("a cat")
        generate(page)
        saved = np.asarray(downloaded(page, "Download a red dog, seed 0"))
    with Generator.open(bundle, threads=1) as generator:
        wanted = generator("a red dog", negative="a cat").pixels[0]
    np.testing.assert_array_equal(saved, wanted)


def test_what_was_chosen_and_how_long_it_took(server: str, open_page: Open) -> None:
    page = open_page(server)
    page.get_by_label("Steps", exact=True).first.fill("3")
    generate(page)
    panel = page.locator(".panel").first
    expect(panel.locator(".total")).to_have_text(re.compile(r"^[\d.]+ ms"))
    assert {"Transformer", "Decoder"} <= {
        text.split()[0] for text in panel.locator(".stages li").all_inner_texts()
    }
    charts = panel.locator("svg[role=img]")
    names = [str(each.get_attribute("aria-label")) for each in charts.all()]
    assert names[0].startswith("Mask ratio over 3 steps: from 0.")
    panel.get_by_text("As a table").click()
    assert panel.locator("tbody tr").count() == 3
    assert panel.locator("thead th").count() == len(names) + 1
    ratios = [float(text) for text in panel.locator("tbody td:nth-of-type(1)").all_inner_texts()]
    assert ratios == sorted(ratios, reverse=True)


def test_side_by_side(server: str, open_page: Open) -> None:
    """The same seed with another schedule of another model, one after the other."""
    page = open_page(server)
    page.get_by_label("Class", exact=True).fill("2")  # they have other names
    page.get_by_role("radio", name="Compare").check()
    page.get_by_label("Schedule").nth(0).select_option("linear")
    page.get_by_label("Model", exact=True).nth(1).select_option("tiny VAR")
    page.get_by_label("Schedule").nth(1).select_option("policy")
    generate(page)
    panels = page.locator(".panel")
    assert [each.locator("h2").inner_text() for each in panels.all()] == [
        "tiny · linear",
        "tiny VAR · policy",
    ]
    for panel in panels.all():
        expect(panel.locator("figcaption").first).to_contain_text("seed 0")
        expect(panel.locator(".total")).to_be_visible()
    page.get_by_text("The request as a command").click()
    command = page.get_by_label("Command", exact=True)
    expect(command).to_contain_text('"model":"tiny VAR"')
    assert re.findall('"schedule":"([^"]+)"', command.inner_text()) == ["linear", "policy"]
    same = page.get_by_text("Both sides are the same")
    expect(same).to_be_hidden()
    page.get_by_label("Model", exact=True).nth(1).select_option("tiny")
    page.get_by_label("Schedule").nth(1).select_option("linear")
    expect(same).to_be_visible()
    page.get_by_role("radio", name="Generate").check()
    expect(page.locator("#status")).to_have_text("")
    generate(page)
    expect(panels.nth(1)).to_be_hidden()


def test_the_last_result_stays_until_there_is_another(server: str, open_page: Open) -> None:
    page = open_page(server)
    generate(page)
    panel = page.locator(".panel").first
    picture, problem = panel.locator("img"), panel.locator(".problem")
    source = picture.get_attribute("src")
    page.get_by_label("Steps", exact=True).first.fill("99")
    page.get_by_role("spinbutton", name="Pictures").fill("2")
    page.locator("#go").click()
    expect(problem).to_have_text(re.compile("99"))
    expect(picture).to_have_count(1)
    assert picture.get_attribute("src") == source
    above, below = problem.bounding_box(), picture.bounding_box()
    assert above and below and above["y"] < below["y"]
    page.get_by_label("Steps", exact=True).first.fill("2")
    generate(page)
    expect(picture).to_have_count(2)


def test_events_are_read_by_their_shapes(server: str, open_page: Open) -> None:
    """Parameters of all images or of the event's own, which may be a list alone; cells that are
    coarser than before."""
    page = open_page(server)
    page.route("**/v1/images/generations", _events)
    page.get_by_role("spinbutton", name="Pictures").fill("2")
    generate(page)
    panel = page.locator(".panel").first
    panel.get_by_text("As a table").click()
    cells = panel.locator("tbody td")
    assert cells.all_inner_texts() == ["0.1", "0.2", "0.3", "0.4"]
    panel.locator("[data-part=which]").select_option("1")
    assert cells.all_inner_texts() == ["0.5", "0.6", "0.7", "0.8"]
    panel.get_by_label("Overlay").select_option("order")
    sizes = "all => all.map(each => [each.width, each.height])"
    assert panel.locator(".picture canvas").evaluate_all(sizes) == [[4, 4], [4, 4]]


def _events(route: Route) -> None:
    """A stream of two images of two steps and two parameters."""
    fine = [[1, 0, 1, 0]] * 4
    images = [[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]]]
    shapes: list[list[Any]] = [
        [[images[0][0]], [images[0][1]]],  # [T][1][P]
        images[1],  # [T][P]
        [[*pair] for pair in zip(*images, strict=True)],  # [T][B][P]
    ]
    shown = [(0, 0, shapes[0][:1], fine), (1, 0, shapes[1][:1], fine)]
    shown += [(0, 1, shapes[0], [[1, 0], [0, 0]]), (1, 1, shapes[2], [[0, 0], [0, 0]])]
    events: list[dict[str, Any]] = [
        _event("partial_image", index, step=step, parameters=parameters, undecided=undecided)
        for index, step, parameters, undecided in shown
    ]
    events += [_event("completed", index, parameters=shapes[index]) for index in (0, 1)]
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in events)
    route.fulfill(content_type="text/event-stream", body=body)


def _event(kind: str, index: int, **told: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    known = {"index": index, "seed": index, "steps": 2, "parameter_names": ["one", "other"]}
    if kind == "partial_image":
        known["caption"] = "a caption"
    return {
        "type": f"image_generation.{kind}",
        "b64_json": base64.b64encode(file.getvalue()).decode(),
        "output_format": "png",
        "fewstep": {**known, **told},
    }


def test_errors_are_told_in_the_page(server: str, open_page: Open) -> None:
    page = open_page(server)
    alert = page.locator(".panel .problem").first
    page.get_by_label("Seed", exact=True).fill("-1")
    page.locator("#go").click()
    expect(alert).to_have_text(re.compile("seed must be a whole number"))
    page.get_by_label("Seed", exact=True).fill("1")
    page.get_by_text("More settings").first.click()
    page.get_by_label("Top k").first.fill("1.5")
    page.get_by_text("More settings").first.click()
    page.locator("#go").click()
    expect(alert).to_have_text(re.compile("^Top k: .*1"))
    expect(page.get_by_label("Top k").first).to_be_focused()
    page.get_by_label("Top k").first.fill("")
    page.get_by_role("spinbutton", name="Pictures").fill("17")
    page.locator("#go").click()
    expect(alert).to_have_text("Pictures: 1 to 16.")
    page.get_by_role("spinbutton", name="Pictures").fill("")
    page.get_by_label("Steps", exact=True).first.fill("99")
    page.locator("#go").click()
    expect(alert).to_have_text(re.compile("99"))
    page.route("**/v1/images/**", lambda route: route.abort())
    page.locator("#go").click()
    expect(alert).to_have_text(re.compile("does not answer"))
    expect(page.locator("#go")).to_be_enabled()


def test_a_request_can_be_cancelled(server: str, open_page: Open) -> None:
    """Nothing moves meanwhile for those who want that."""
    page = open_page(server, reduced_motion="reduce")
    page.route("**/v1/images/**", lambda route: None)  # is never answered
    page.locator("#go").click()
    waiting = page.locator(".waiting")
    assert waiting.evaluate("each => getComputedStyle(each).animationName") == "none"
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#go")).to_be_enabled()


def test_a_server_with_a_key_is_asked_with_it(keyed: Served, open_page: Open) -> None:
    page = open_page(f"{keyed.url}/")
    expect(page.locator("#problem")).to_have_text(re.compile("key", re.IGNORECASE))
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_have_text("That key is wrong.")
    page.keyboard.type("ключ")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_have_text("That key is wrong.")
    expect(page.locator("#main")).to_be_hidden()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_be_hidden()
    generate(page)
    page.get_by_text("The request as a command").click()
    assert KEY not in page.locator("#curl").inner_text()
    page.reload()  # it is kept in the tab
    expect(page.locator("#main")).to_be_visible()


def test_the_command_makes_the_same_request(server: str, open_page: Open) -> None:
    page = open_page(server)
    page.get_by_label("Class", exact=True).fill("bag")
    page.get_by_label("Guidance").first.fill("0:2")
    page.get_by_text("The request as a command").click()
    command = page.get_by_label("Command", exact=True)
    expect(command).to_contain_text(f"curl '{server}v1/images/generations'")
    expect(command).to_contain_text('"guidance":"0:2","prompt":"bag","n":1,"seed":0')


def test_it_is_used_with_the_keyboard_alone(server: str, open_page: Open) -> None:
    page = open_page(server)
    _tab_to(page, "class")
    page.keyboard.press("Control+A")
    page.keyboard.type("s")
    page.keyboard.press("ArrowDown")
    chosen = page.locator("#classes [aria-selected]").inner_text()
    page.keyboard.press("Enter")
    assert page.locator("#class").input_value() == chosen == "shoe"
    _tab_to(page, "go")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Done.")
    assert _focused(page) == "go"


def _tab_to(page: Page, wanted: str) -> None:
    for _ in range(40):
        if _focused(page) == wanted:
            return
        page.keyboard.press("Tab")
        outline = page.evaluate(
            "(e => [e, e.nextElementSibling].some(x => x && getComputedStyle(x).outlineStyle"
            " !== 'none'))(document.activeElement)"
        )
        assert outline, f"the focus on {_focused(page)!r} is not visible"
    raise AssertionError(f"{wanted} is not reached")


def _focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id"))


def test_nothing_is_wider_than_the_window(server: str, open_page: Open) -> None:
    page = open_page(server, viewport={"width": 360, "height": 740})
    page.get_by_text("More settings").first.click()
    page.get_by_role("radio", name="Compare").check()
    generate(page)
    page.get_by_text("As a table").first.click()
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width
