"""Who does not see the page, or not well: names of all controls, and contrasts of both themes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.server.page.conftest import Open

_CONTROLS = {
    *("button", "checkbox", "combobox", "image", "img", "link", "listbox", "progressbar", "radio"),
    *("region", "slider", "spinbutton", "textbox"),
}
_LEAST = 4.5
"""The contrast that WCAG 2.2 wants of text (level AA)."""

# What of the text is seen, with its colour and all backgrounds below it, innermost first.
_TEXTS = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    const text = node.textContent.trim(), unread = ":disabled, .unseen, .skip, option, template";
    if (!text || !element.checkVisibility() || element.closest(unread)) continue;
    const style = getComputedStyle(element), below = [];
    for (let each = element; each; each = each.parentElement) {
      below.push(getComputedStyle(each).backgroundColor);
    }
    found.push([text, element.closest("svg") ? style.fill : style.color, below]);
  }
  const fields = "input:not([type=radio], [type=range], [type=checkbox]), select, textarea";
  for (const each of document.querySelectorAll(fields)) {
    if (!each.checkVisibility()) continue;
    const below = [getComputedStyle(each).backgroundColor];
    found.push([each.id, getComputedStyle(each).color, below]);
    const hint = getComputedStyle(each, "::placeholder").color;
    if (each.placeholder) found.push([each.placeholder, hint, below]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def full(server: str, browser: Browser) -> Page:
    """The page with all that can be seen: a comparison, an error, details open."""
    page = browser.new_page(base_url=server)
    page.goto("/")
    expect(page.locator("#main")).to_be_visible()
    page.get_by_role("radio", name="Compare").check()
    page.locator("#go").click()
    expect(page.locator("#status")).to_have_text("Done.")
    for summary in page.locator("summary:visible").all():
        summary.click()
    page.get_by_label("Overlay").first.select_option("order")
    page.get_by_label("Seed", exact=True).fill("none")
    page.locator("#go").click()
    return page


def test_all_controls_have_names(full: Page) -> None:
    session = full.context.new_cdp_session(full)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    seen = [(_value(each, "role"), _value(each, "name")) for each in nodes if not each["ignored"]]
    controls = [(role, name) for role, name in seen if role in _CONTROLS]
    assert len(controls) > 40
    assert [role for role, name in controls if not name.strip()] == []


def _value(node: dict[str, Any], what: str) -> str:
    return str(node.get(what, {}).get("value", ""))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out(full: Page, theme: str) -> None:
    full.locator("#theme").select_option(theme)
    texts = full.evaluate(_TEXTS)
    assert len(texts) > 60
    low = {text: ratio for text, *colours in texts if (ratio := _contrast(*colours)) < _LEAST}
    assert low == {}


def test_the_theme_is_the_systems_unless_one_is_chosen(server: str, open_page: Open) -> None:
    page = open_page(server, color_scheme="dark")
    body = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(body)
    assert _luminance(_rgba(dark)) < 0.05
    page.locator("#theme").select_option("light")
    assert _luminance(_rgba(page.evaluate(body))) > 0.8
    page.reload()
    assert page.evaluate(body) != dark


def _contrast(colour: str, below: list[str]) -> float:
    """Of a colour and the first background below it, by WCAG's relative luminance."""
    ground = next(each for each in map(_rgba, below) if each[3] == 1)
    lights = sorted((_luminance(_rgba(colour)), _luminance(ground)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _rgba(colour: str) -> tuple[float, float, float, float]:
    red, green, blue, *alpha = map(float, re.findall(r"[\d.]+", colour))
    return red, green, blue, alpha[0] if alpha else 1.0


def _luminance(colour: tuple[float, float, float, float]) -> float:
    parts = (each / 255 for each in colour[:3])
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
