/** A picture to edit, and where it is painted anew: brush strokes and boxes, which can be undone. */

import { $ } from "./dom.js";

/** Pixels of the longer side; larger pictures are made smaller before they are sent. */
const LARGEST = 2048;
const TINY = 128;
const INK = "rgb(214 51 108)";

export class Painter {
  constructor() {
    this.canvas = $("paint");
    this.source = null;
    this.marks = [];
    this.ink = new OffscreenCanvas(1, 1);
    this.#listen();
  }

  /** Whether there is a picture. */
  get ready() {
    return this.source !== null;
  }

  /**
   * Take a picture; marks of the one before are gone.
   *
   * @param {Blob} blob of an image file
   * @throws {Error} it is no picture
   */
  async take(blob) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      throw new Error("This file is no picture that the browser can read; take a PNG, JPEG or WebP.");
    }
    const { width: wide, height: high } = bitmap;
    const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
    const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
    this.source = new OffscreenCanvas(width, height);
    this.source.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0, width, height);
    this.ink = new OffscreenCanvas(width, height);
    this.ink.getContext("2d", { willReadFrequently: true });
    [this.canvas.width, this.canvas.height] = [width, height];
    this.canvas.classList.toggle("tiny", Math.max(width, height) < TINY);
    $("painter").hidden = false;
    const smaller = scale < 1 ? `, made smaller from ${wide} × ${high}` : "";
    $("picture-size").textContent = `${width} × ${height} pixels${smaller}`;
    for (const [id, value] of Object.entries({ left: 0, top: 0, right: width, bottom: height })) {
      $(`box-${id}`).value = String(value);
      $(`grow-${id}`).value = "";
    }
    $("box-problem").textContent = "";
    this.#set([]);
  }

  /** Whether the picture has transparency, which is painted anew where nothing else is said. */
  isClear() {
    const { width, height } = this.source;
    const { data } = this.source.getContext("2d").getImageData(0, 0, width, height);
    return data.some((value, at) => at % 4 === 3 && value < 255);
  }

  /** The picture as it is sent. */
  picture() {
    return this.source.convertToBlob({ type: "image/png" });
  }

  /** Of the picture's size, transparent where it is painted anew; `null` where nothing is marked. */
  async mask() {
    const { width, height } = this.ink;
    const ink = this.ink.getContext("2d").getImageData(0, 0, width, height).data;
    const kept = new ImageData(width, height);
    let marked = false;
    for (let at = 3; at < ink.length; at += 4) {
      kept.data[at] = ink[at] < 128 ? 255 : 0;
      marked ||= kept.data[at] === 0;
    }
    if (!marked) return null;
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(kept, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }

  #listen() {
    let stroke = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      stroke = { size: this.#size(), erase: $("erase").checked, points: [this.#at(event)] };
      this.#set([...this.marks, stroke]);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!stroke) return;
      for (const each of event.getCoalescedEvents?.() ?? []) stroke.points.push(this.#at(each));
      stroke.points.push(this.#at(event));
      this.#draw();
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, () => {
        if (stroke) this.#tell();
        stroke = null;
      });
    }
    $("undo").addEventListener("click", () => this.#set(this.marks.slice(0, -1)));
    $("clear").addEventListener("click", () => this.#set([]));
    $("add-box").addEventListener("click", () => this.#box());
  }

  /** Pixels of the brush: its part of the picture's longer side. */
  #size() {
    return Math.max(1, (Number($("brush").value) / 100) * Math.max(this.ink.width, this.ink.height));
  }

  #at(event) {
    const place = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - place.left) / place.width) * this.canvas.width,
      ((event.clientY - place.top) / place.height) * this.canvas.height,
    ];
  }

  #box() {
    const [left, top, right, bottom] = ["left", "top", "right", "bottom"].map((id) => Number($(`box-${id}`).value));
    const { width, height } = this.ink;
    const fits = left >= 0 && top >= 0 && left < right && top < bottom && right <= width && bottom <= height;
    $("box-problem").textContent = fits
      ? ""
      : `A box needs left < right ≤ ${width} and top < bottom ≤ ${height}.`;
    if (fits) this.#set([...this.marks, { box: [left, top, right, bottom], erase: $("erase").checked }]);
    else this.#tell();
  }

  #set(marks) {
    this.marks = marks;
    $("undo").disabled = $("clear").disabled = marks.length === 0;
    $("paint-hint").hidden = marks.length > 0;
    this.#draw();
    this.#tell();
  }

  /** As any field of the form. */
  #tell() {
    this.canvas.dispatchEvent(new Event("change", { bubbles: true }));
  }

  #draw() {
    const ink = this.ink.getContext("2d");
    ink.clearRect(0, 0, this.ink.width, this.ink.height);
    for (const mark of this.marks) drawMark(ink, mark);
    const view = this.canvas.getContext("2d");
    view.clearRect(0, 0, this.canvas.width, this.canvas.height);
    view.drawImage(this.source, 0, 0);
    view.globalAlpha = 0.6;
    view.drawImage(this.ink, 0, 0);
    view.globalAlpha = 1;
  }
}

function drawMark(context, mark) {
  context.globalCompositeOperation = mark.erase ? "destination-out" : "source-over";
  context.fillStyle = context.strokeStyle = INK;
  if (mark.box) {
    const [left, top, right, bottom] = mark.box;
    context.fillRect(left, top, right - left, bottom - top);
    return;
  }
  Object.assign(context, { lineWidth: mark.size, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  context.moveTo(...mark.points[0]);
  for (const [x, y] of mark.points) context.lineTo(x + 0.01, y);
  context.stroke();
}

/** Reads the fields of the editor: what a request to edit has beside those of any other. */
export async function edits(painter) {
  const given = { image: await painter.picture() };
  const mask = await painter.mask();
  if (mask) given.mask = mask;
  const outpaint = ["left", "top", "right", "bottom"]
    .map((side) => [side, Number($(`grow-${side}`).value)])
    .filter(([, pixels]) => pixels > 0)
    .map((pair) => pair.join(":"));
  if (outpaint.length) given.outpaint = outpaint.join(",");
  if ($("strength").value !== "") given.strength = Number($("strength").value);
  if ($("fit").value !== "crop") given.fit = $("fit").value;
  if ($("blend").checked) given.blend = true;
  return given;
}

/** Files that are chosen, or dropped on the page's field for them, go to `take`. */
export function receive(take) {
  const [zone, input] = [$("drop"), $("file")];
  input.addEventListener("change", () => input.files[0] && take(input.files[0]));
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      const file = kind === "drop" && event.dataTransfer.files[0];
      if (file) take(file);
    });
  }
}
