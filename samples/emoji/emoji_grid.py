"""A sheet: for each split a row of generated images above the true ones, with their texts.

python samples/emoji/emoji_grid.py    # writes results/grid.png
"""

from __future__ import annotations

import textwrap
import unicodedata

import numpy as np
import torch
from emoji_bundle import emoji_bundle
from emoji_data import IMAGE_SIZE, SPLITS
from emoji_evaluate import Images, generate, one_a_pair
from emoji_text import Known
from emoji_tokenizer import FOLDER
from PIL import Image, ImageDraw, ImageFont

from fewstep.runtime import Generator

TITLES = {
    "train": "texts it was trained with",
    "new_pair": "held-out pairs: emoji seen in the other two styles only",
    "new_emoji": "held-out emoji: never seen in any style",
}
COLUMNS = 9
WIDTH, HEADING, LINE = 84, 16, 10
CAPTION = 3 * LINE
COLOURS = 128


def sheet(made: dict[str, Images]) -> Image.Image:
    """Generated images ``[COLUMNS, 64, 64, 3]`` of each split, and the true ones under them."""
    height = HEADING + 2 * IMAGE_SIZE + CAPTION + 4
    picture = Image.new("RGB", (COLUMNS * WIDTH, len(made) * height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(9)
    for row, (split, images) in enumerate(made.items()):
        top, emojis = row * height, one_a_pair(split, limit=COLUMNS)
        title = f"{TITLES[split]} (above: generated, below: real)"
        draw.text((4, top + 2), title, fill="black", font=ImageFont.load_default(11))
        for column in range(COLUMNS):
            left = column * WIDTH + (WIDTH - IMAGE_SIZE) // 2
            for below, image in enumerate((images[column], emojis.images[column])):
                place = left, top + HEADING + below * IMAGE_SIZE
                picture.paste(Image.fromarray(np.ascontiguousarray(image)), place)
            plain = unicodedata.normalize("NFD", str(emojis.texts[column, 0]))  # the font is ASCII
            lines = textwrap.wrap(plain.encode("ascii", "ignore").decode(), 18)[:3]
            for line, text in enumerate(lines):
                y = top + HEADING + 2 * IMAGE_SIZE + line * LINE
                draw.text((column * WIDTH + 3, y), text, fill="black", font=font)
    return picture


if __name__ == "__main__":
    torch.set_num_threads(1)
    known, made = Known(), dict[str, Images]()
    with Generator.open(emoji_bundle(), threads=1) as generator:
        for split in SPLITS:
            texts = one_a_pair(split, limit=COLUMNS).texts[:, 0]
            made[split] = generate(generator, known.states[known.rows(texts)], {}, 0)
    (FOLDER / "results").mkdir(exist_ok=True)
    small = sheet(made).quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(FOLDER / "results" / "grid.png", optimize=True)
    print(FOLDER / "results" / "grid.png")
