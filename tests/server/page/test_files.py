"""The files of the web page by themselves: all there, nothing inline, nothing from elsewhere."""

from __future__ import annotations

import re

from fewstep.server.app import PAGE
from fewstep.server.order import MAX_IMAGES

_TEXTS = {path.name: path.read_text("utf-8") for path in PAGE.iterdir()}


def test_what_the_files_refer_to_is_there() -> None:
    page = _TEXTS["index.html"]
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page))
    for text in _TEXTS.values():
        named |= {name.removeprefix("./") for name in re.findall(r' from "([^"]+)"', text)}
    assert named == _TEXTS.keys() - {"index.html"}


def test_elements_that_modules_look_for_are_in_the_page() -> None:
    page = _TEXTS["index.html"]
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    parts = set(re.findall(r'data-part="([^"]+)"', page))
    for name, text in _TEXTS.items():
        assert set(re.findall(r'\$\("([^"]+)"\)', text)) <= ids, name
        assert set(re.findall(r"\bparts\.(\w+)", text)) <= parts, name


def test_limits_of_fields_are_those_of_the_server() -> None:
    found = re.search(r'id="count"[^>]*\bmax="(\d+)"', _TEXTS["index.html"])
    assert found is not None and int(found[1]) == MAX_IMAGES


def test_nothing_is_inline_or_from_elsewhere() -> None:
    page = _TEXTS["index.html"]
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=", page) == []
    for text in _TEXTS.values():
        addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"^\s*(//|\*).*", "", text))
        assert set(addresses) <= {"http://www.w3.org"}  # the namespace of SVG
