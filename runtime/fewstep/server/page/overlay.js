/** What is known of the cells of a picture, drawn above it: one pixel a cell, enlarged by the page. */

const VEIL = [66, 84, 120];
const FIRST = [253, 231, 37];
const LAST = [68, 1, 84];

/**
 * Cells that may still change, under a veil.
 *
 * @param {HTMLCanvasElement} canvas above the picture
 * @param {number[][]} undecided 1 where a cell may change
 */
export function veil(canvas, undecided) {
  canvas.classList.remove("tiny");
  paint(canvas, undecided, (cell) => (cell ? [...VEIL, 165] : [...VEIL, 0]));
}

/**
 * The step at which each cell was decided for good, from light to dark.
 *
 * @param {HTMLCanvasElement} canvas above the picture
 * @param {number[][][]} steps what was undecided after every step, in cells that may be coarser
 */
export function order(canvas, steps) {
  canvas.classList.add("tiny");
  const last = Math.max(1, steps.length - 1);
  const finest = steps.reduce((one, other) => (other.length > one.length ? other : one));
  const decided = finest.map((row, y) =>
    row.map((_, x) => steps.findLastIndex((cells) => at(cells, y / finest.length, x / row.length)) + 1),
  );
  paint(canvas, decided, (step) => {
    const between = (first, index) => first + ((LAST[index] - first) * step) / last;
    return [...FIRST.map(between), 190];
  });
}

/** The cell at a place, whose sides are 0 to 1. */
function at(cells, down, across) {
  const row = cells[Math.floor(down * cells.length)];
  return row?.[Math.floor(across * row.length)];
}

function paint(canvas, cells, colour) {
  canvas.hidden = !cells.length;
  if (canvas.hidden) return;
  [canvas.height, canvas.width] = [cells.length, cells[0].length];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  cells.flat().forEach((cell, index) => pixels.data.set(colour(cell), 4 * index));
  context.putImageData(pixels, 0, 0);
}
