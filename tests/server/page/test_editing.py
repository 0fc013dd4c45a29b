"""Editing in the web page: what is marked in Chromium is what the generator paints anew."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Page, expect
from tests.server.page.conftest import Open, downloaded, generate
from tests.serving import opening, serving

from fewstep.runtime.generator import Generator

_SIZE = 8


@pytest.fixture(scope="module")
def edit_server(edit_bundle: Path) -> Iterator[str]:
    """The address of a server of a bundle with an encoder."""
    with serving([opening(edit_bundle)]) as found:
        yield f"{found.url}/"


def _photo() -> FilePayload:
    """A file of another size than the bundle's pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return {"name": "photo.png", "mimeType": "image/png", "buffer": file.getvalue()}


def test_what_is_in_a_box_is_painted_anew(
    edit_server: str, edit_bundle: Path, open_page: Open
) -> None:
    """A result is taken to the editor and marked with the keyboard alone."""
    page = open_page(edit_server)
    generate(page)
    first = downloaded(page, "Download shirt, seed 0")
    page.get_by_role("button", name="Edit shirt, seed 0").press("Enter")
    expect(page.get_by_role("radio", name="Edit")).to_be_checked()
    page.get_by_text("Mark a box by numbers").press("Enter")
    page.get_by_label("Right").first.fill("0")
    page.get_by_role("button", name="Mark the box").press("Enter")
    problem = page.locator("#box-problem")
    expect(problem).to_have_text("A box needs left < right ≤ 8 and top < bottom ≤ 8.")
    page.get_by_label("Right").first.fill("4")
    page.get_by_role("button", name="Mark the box").press("Enter")
    expect(problem).to_have_text("")
    page.get_by_label("Seed", exact=True).fill("5")
    generate(page)
    with Generator.open(edit_bundle, threads=1) as generator:
        wanted = generator.edit(first, "shirt", mask=(0, 0, 4, 8), seed=5).pixels[0]
    picture = downloaded(page, "Download shirt, seed 5")
    np.testing.assert_array_equal(np.asarray(picture), wanted)


def test_a_file_is_marked_with_a_brush(edit_server: str, open_page: Open) -> None:
    """Strokes are undone and erased; the command's files are the picture and its mask."""
    page = open_page(edit_server)
    page.get_by_role("radio", name="Edit").check()
    page.locator("#go").click()
    expect(page.get_by_role("alert").filter(has_text="Choose a picture")).to_be_visible()
    page.locator("#file").set_input_files([_photo()])
    expect(page.locator("#picture-size")).to_have_text("16 × 12 pixels")
    hint = page.locator("#paint-hint")
    expect(hint).to_be_visible()
    page.locator("#go").click()
    expect(page.get_by_role("alert").filter(has_text="Mark a part of the picture")).to_be_visible()
    page.get_by_label("Brush").fill("25")  # of 16 pixels
    _stroke(page, (0, 2), (16, 2))
    expect(hint).to_be_hidden()
    _stroke(page, (0, 9), (16, 9))
    page.get_by_role("button", name="Undo").click()
    page.get_by_label("Erase").check()
    _stroke(page, (14, 2), (16, 2))
    page.get_by_text("The request as a command").click()
    assert downloaded(page, "Save image.png").size == (16, 12)
    kept = np.asarray(downloaded(page, "Save mask.png").getchannel("A"))
    assert (kept[1:3, :11] == 0).all()
    assert (kept[1:3, 14:] == 255).all()
    assert (kept[5:] == 255).all()
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("link", name="Save mask.png")).to_have_count(0)


def test_a_variation_and_a_picture_that_grows(edit_server: str, open_page: Open) -> None:
    page = open_page(edit_server)
    page.get_by_role("radio", name="Edit").check()
    page.locator("#file").set_input_files([_photo()])
    page.get_by_label("Strength of a variation").fill("0.5")
    generate(page)
    assert downloaded(page, "Download shirt, seed 0").size == (_SIZE, _SIZE)
    page.get_by_label("Strength of a variation").fill("")
    page.get_by_text("Grow the picture").click()
    page.locator("#grow-right").fill("4")
    generate(page)
    assert downloaded(page, "Download shirt, seed 0").size == (_SIZE + 4, _SIZE)
    page.get_by_label("Strength of a variation").fill("0.5")
    page.locator("#go").click()
    expect(page.get_by_role("alert").filter(has_text="changes the whole picture")).to_be_visible()
    page.locator("#file").set_input_files([_photo()])
    expect(page.locator("#grow-right")).to_have_value("")  # of the picture before
    generate(page)


def test_the_result_is_in_sight_wherever_the_form_is(edit_server: str, open_page: Open) -> None:
    """Beside a form that is longer than the window."""
    page = open_page(edit_server, viewport={"width": 1280, "height": 600})
    page.get_by_role("radio", name="Edit").check()
    page.locator("#file").set_input_files([_photo()])
    page.get_by_label("Strength of a variation").fill("0.5")
    page.get_by_text("The request as a command").scroll_into_view_if_needed()
    generate(page)
    assert page.evaluate("scrollY") > 100
    expect(page.locator(".picture img")).to_be_in_viewport(ratio=0.5)


def test_a_large_picture_is_made_smaller(edit_server: str, open_page: Open) -> None:
    page = open_page(edit_server)
    page.get_by_role("radio", name="Edit").check()
    file = io.BytesIO()
    Image.new("RGB", (4096, 8)).save(file, "png")
    photo: FilePayload = {"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.locator("#file").set_input_files([photo])
    size = page.locator("#picture-size")
    expect(size).to_have_text("2048 × 4 pixels, made smaller from 4096 × 8")


def test_models_without_encoder_are_not_offered_for_it(server: str, open_page: Open) -> None:
    page = open_page(server)
    expect(page.get_by_role("radio", name="Compare")).to_be_visible()
    expect(page.get_by_role("radio", name="Edit")).to_be_hidden()


def _stroke(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """With the pointer, in pixels of the picture."""
    place = page.locator("#paint").bounding_box()
    assert place is not None
    scale = place["width"] / 16
    (x, y), (to_x, to_y) = start, end
    page.mouse.move(place["x"] + x * scale, place["y"] + y * scale)
    page.mouse.down()
    page.mouse.move(place["x"] + to_x * scale, place["y"] + to_y * scale, steps=3)
    page.mouse.up()
