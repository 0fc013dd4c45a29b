/** The pictures of one request: they grow step by step, and what is known of them stands below. */

import { charts, table } from "./chart.js";
import { copyOf, make } from "./dom.js";
import { latency } from "./latency.js";
import { order, veil } from "./overlay.js";

/** Pixels of a side below which a picture is shown with its pixels. */
const TINY = 128;

export class Panel {
  /**
   * @param {HTMLElement} root where it goes
   * @param {(url: string) => void} edit takes a picture to the editor
   */
  constructor(root, edit) {
    const [element, parts] = copyOf("panel");
    root.append(element);
    Object.assign(this, { element, parts, edit });
    parts.slider.addEventListener("input", () => this.#show());
    parts.overlay.addEventListener("change", () => this.#show());
    parts.which.addEventListener("change", () => this.#facts());
    this.clear();
  }

  /** Nothing to see. */
  clear() {
    this.pictures = [];
    this.known = {};
    this.next = null;
    this.element.hidden = true;
    this.element.classList.remove("old");
    this.parts.title.textContent = "";
    for (const name of ["problem", "timeline", "facts"]) this.parts[name].hidden = true;
    this.parts.pictures.replaceChildren();
    this.parts.notes.replaceChildren();
  }

  /** Whether a request began of which there is nothing to see. */
  get waits() {
    return this.next !== null;
  }

  /**
   * Wait for the pictures of a request: the last result stays until then, else there are empty frames.
   *
   * @param {string} title of the panel
   * @param {{count: number, label: string, editable: boolean, partial: number}} asked
   *   `partial`: pictures before the last, at most
   */
  start(title, asked) {
    const old = this.pictures.length > 0;
    if (!old) this.#empty(title, asked);
    this.next = { title, asked };
    this.element.classList.toggle("old", old);
    this.parts.problem.hidden = true;
  }

  #empty(title, asked) {
    this.clear();
    this.asked = asked;
    this.element.hidden = false;
    this.parts.title.textContent = title;
    for (let index = 0; index < asked.count; index++) this.#add();
    const numbers = this.pictures.map((_, index) =>
      make("option", { value: String(index), textContent: `picture ${index + 1}` }),
    );
    this.parts.which.replaceChildren(...numbers);
    this.parts.whichLabel.hidden = asked.count < 2;
  }

  /** What there is of a picture after a step. */
  partial(event) {
    this.#take(event, false);
  }

  /** A picture that is done. */
  completed(event) {
    this.#take(event, true);
  }

  /** What went wrong, in words; pictures stay, of this request or of the last one. */
  fail(message) {
    this.next = null;
    this.element.hidden = false;
    this.element.classList.remove("old");
    this.parts.problem.hidden = false;
    this.parts.problem.textContent = message;
    for (const { view, frames } of this.pictures) if (!frames.length) view.parentElement.remove();
    this.pictures = this.pictures.filter(({ frames }) => frames.length);
  }

  #take(event, done) {
    if (this.next) this.#empty(this.next.title, this.next.asked);
    const { index, parameters } = event.fewstep;
    this.known = { ...this.known, ...event.fewstep };
    this.pictures[index].parameters = ofImage(parameters ?? [], index);
    this.#frame(event, done);
    this.#facts();
  }

  #add() {
    const image = make("img", { alt: "", draggable: false });
    const canvas = make("canvas", { hidden: true, "aria-hidden": "true" });
    const view = make("div", { className: "view waiting" }, image, canvas);
    image.addEventListener("load", () => {
      view.classList.toggle("tiny", image.naturalWidth < TINY);
      view.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
    });
    const caption = make("figcaption", {});
    this.parts.pictures.append(make("figure", { className: "picture" }, view, caption));
    this.pictures.push({ image, canvas, view, caption, frames: [], parameters: [] });
  }

  #frame(event, done) {
    const { index, seed, steps, caption = "done" } = event.fewstep;
    const picture = this.pictures[index];
    const { frames } = picture;
    const undecided = event.fewstep.undecided ?? nothing(frames.at(-1)?.undecided ?? []);
    const follows = Number(this.parts.slider.value) >= Number(this.parts.slider.max);
    const frame = { url: `data:image/${event.output_format};base64,${event.b64_json}`, undecided, caption };
    if (done && frames.length === steps) frame.caption = frames.pop().caption;
    frames.push(frame);
    picture.view.classList.remove("waiting");
    if (done) this.#finish(picture, seed, frame.url, event.output_format);
    const last = Math.max(...this.pictures.map((each) => each.frames.length)) - 1;
    this.parts.slider.max = String(last);
    if (follows) this.parts.slider.value = String(last);
    this.parts.timeline.hidden = last < 1;
    this.#show();
  }

  #finish({ image, caption }, seed, url, format) {
    const { label, editable } = this.asked;
    const name = `${label}, seed ${seed}`;
    image.alt = name;
    const file = `fewstep-${name.replace(/[^\p{L}\p{N}]+/gu, "-")}.${format}`;
    const save = make("a", { className: "button", href: url, download: file, textContent: "Download" });
    save.setAttribute("aria-label", `Download ${name}`);
    const actions = make("span", { className: "row" }, save);
    if (editable) {
      const change = make("button", { type: "button", textContent: "Edit this", "aria-label": `Edit ${name}` });
      change.addEventListener("click", () => this.edit(url));
      actions.append(change);
    }
    caption.replaceChildren(make("span", { textContent: name }), actions);
  }

  #show() {
    const at = Number(this.parts.slider.value);
    const kind = this.parts.overlay.value;
    let caption = "";
    for (const { image, canvas, frames } of this.pictures) {
      const frame = frames[Math.min(at, frames.length - 1)];
      if (!frame) continue;
      image.src = frame.url;
      caption = frame.caption;
      if (kind === "order") order(canvas, frames.map((each) => each.undecided));
      else veil(canvas, kind === "undecided" ? frame.undecided : []);
    }
    this.parts.legend.hidden = kind !== "order";
    this.parts.caption.textContent = caption;
    this.parts.slider.setAttribute("aria-valuetext", caption);
  }

  #facts() {
    const { timings_ms: timings, parameter_names: names, notes } = this.known;
    const images = this.pictures.map(({ parameters }) => parameters);
    const image = Math.min(Number(this.parts.which.value), images.length - 1);
    const steps = images[image] ?? [];
    this.parts.facts.hidden = !timings && !steps.length;
    this.parts.time.hidden = !timings;
    this.parts.shown.hidden = !this.asked.partial;
    if (timings) this.parts.latency.replaceChildren(...latency(timings));
    this.parts.chosen.hidden = !steps.length;
    if (steps.length) {
      this.parts.charts.replaceChildren(...charts(names, images, this.known.steps, image));
      this.parts.table.replaceChildren(table(names, steps));
    }
    const lines = (notes ?? []).map((note) => make("li", { textContent: note }));
    this.parts.notes.replaceChildren(...lines);
  }
}

/** Parameters of one image `[T][P]`, of its own or of those of all images `[T][B][P]`. */
const ofImage = (parameters, index) =>
  parameters.map((step) => (Array.isArray(step[0]) ? (step[index] ?? step[0]) : step));

/** Cells of which none may change. */
const nothing = (cells) => cells.map((row) => row.map(() => 0));
