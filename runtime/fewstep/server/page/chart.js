/** What the schedule or the policy chose: a small line chart for each parameter, and a table. */

import { draw, make, short, words } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [180, 92, 32, 6, 8, 18];

/**
 * @param {string[]} names of the parameters
 * @param {number[][][]} images `[B][T][P]`: of every image, as far as it is, step and parameter
 * @param {number} total steps that there will be
 * @param {number} image the one whose line is strong
 */
export function charts(names, images, total, image) {
  return names.map((name, parameter) => {
    const lines = images.map((steps) => steps.map((step) => step[parameter]));
    const title = make("figcaption", { textContent: words(name) });
    return make("figure", { className: "chart" }, title, chart(words(name), lines, total, image));
  });
}

function chart(name, lines, total, image) {
  const values = lines.flat();
  const [least, most] = [Math.min(...values, 0), Math.max(...values)];
  const span = most - least || 1;
  const x = (step) => LEFT + ((WIDTH - LEFT - RIGHT) * step) / Math.max(1, total - 1);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - least) / span);
  const strong = lines[image];
  const label = `${name} over ${total} steps: from ${short(strong[0])} to ${short(strong.at(-1))}`;
  const graph = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const value of [least, least + span]) {
    graph.append(
      draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      draw("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
  graph.append(
    draw("text", { x: LEFT, y: HEIGHT - 3 }, "1"),
    draw("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, `${total}`),
  );
  const others = lines.filter((line, row) => row !== image && line.length);
  for (const line of others) graph.append(path(line, x, y, "other"));
  graph.append(path(strong, x, y, "line"));
  for (const [step, value] of strong.entries()) {
    const tip = draw("title", {}, `step ${step + 1}: ${short(value)}`);
    graph.append(draw("circle", { class: "dot", cx: x(step), cy: y(value), r: 2.5 }, tip));
  }
  return graph;
}

function path(line, x, y, name) {
  const points = line.map((value, step) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`);
  return draw("polyline", { class: name, points: points.join(" ") });
}

/** The same as rows of a table, for one image: `[T][P]`. */
export function table(names, steps) {
  const head = ["Step", ...names.map(words)].map((name) => make("th", { scope: "col", textContent: name }));
  const rows = steps.map((step, index) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", textContent: String(index + 1) }),
      ...step.map((value) => make("td", { textContent: short(value) })),
    ),
  );
  const body = make("tbody", {}, ...rows);
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), body);
}
