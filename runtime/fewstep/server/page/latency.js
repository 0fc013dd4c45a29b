/** How long a request took: a bar of its stages, and their names with milliseconds. */

import { make, short, words } from "./dom.js";

/** Colours of the style sheet. */
const COLOURS = 9;

/** Stages in the order in which the page met them: each keeps its colour. */
const seen = [];

function colour(stage) {
  if (!seen.includes(stage)) seen.push(stage);
  return `stage-${seen.indexOf(stage) % COLOURS}`;
}

/** @param {Object<string, number>} timings milliseconds by stage, and in `total`, and before all in `queue` */
export function latency(timings) {
  const { total, queue = 0, ...stages } = timings;
  const sum = Object.values(stages).reduce((one, other) => one + other, 0);
  const found = Object.entries(stages).filter(([, ms]) => ms > 0);
  const bar = make("div", { className: "bar", "aria-hidden": "true" });
  const list = make("ul", { className: "stages" });
  for (const [name, ms] of found) {
    const part = make("span", { className: `stage ${colour(name)}` });
    part.style.flexGrow = String(ms / sum);
    bar.append(part);
    const key = make("span", { className: `key ${colour(name)}`, "aria-hidden": "true" });
    list.append(make("li", {}, key, `${words(name)} ${short(ms)} ms`));
  }
  const head = make("p", { className: "total", textContent: `${short(total ?? sum)} ms` });
  if (queue >= 1) head.append(make("small", { textContent: ` after ${short(queue)} ms in the queue` }));
  return [head, bar, list];
}
