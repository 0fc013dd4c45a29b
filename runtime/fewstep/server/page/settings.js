/** The choice of a model and the fields of its settings, made of what the server says of them. */

import { copyOf, make, words } from "./dom.js";

/** Settings that are shown at once, where a model has them; the others are behind "More settings". */
const FRONT = ["preset", "schedule", "steps", "iterations", "scales", "guidance"];

let made = 0;

export class ModelForm {
  /**
   * @param {HTMLElement} root where its fields go
   * @param {object[]} models of the server
   * @param {string} label of the choice of the model
   */
  constructor(root, models, label) {
    const [fields, parts] = copyOf("model-form");
    root.append(fields);
    this.models = models;
    this.parts = parts;
    this.inputs = new Map();
    const id = `model-${++made}`;
    parts.label.textContent = label;
    parts.label.htmlFor = parts.model.id = id;
    parts.model.append(...models.map((each) => make("option", { value: each.id, textContent: each.id })));
    parts.model.addEventListener("change", () => this.#fill());
    this.#fill();
  }

  /** What the server says of the chosen model. */
  get model() {
    return this.models.find((each) => each.id === this.parts.model.value);
  }

  /** Take what the server says of the same models later. */
  update(models) {
    this.models = models;
    this.#tell();
  }

  /** Calls when another model was chosen. */
  onChange(told) {
    this.parts.model.addEventListener("change", told);
  }

  /** The fields of a request: the model, and the settings that were given. */
  values() {
    const given = { model: this.model.id };
    for (const [name, input] of this.inputs) {
      const value = valueOf(input);
      if (value !== null) given[name] = value;
    }
    return given;
  }

  #fill() {
    const known = this.model.fewstep;
    const before = new Map(this.inputs);
    this.inputs.clear();
    const front = [];
    const more = [];
    const order = Object.entries(known.settings).sort(([one], [other]) => place(one) - place(other));
    for (const [name, setting] of order) {
      if (name === "preset" && !known.presets?.length) continue;
      const [field, input] = fieldOf(name, setting, known);
      const old = before.get(name);
      if (old && old.tagName === input.tagName) copyValue(old, input);
      this.inputs.set(name, input);
      (FRONT.includes(name) ? front : more).push(field);
    }
    this.parts.front.replaceChildren(...front);
    this.parts.more.replaceChildren(...more);
    this.parts.rest.hidden = more.length === 0;
    this.#tell();
  }

  #tell() {
    const { image_size: [height, width], precision, backend, device } = this.model.fewstep;
    const where = backend ? `${precision} · ${backend} · ${device}` : "is being opened";
    this.parts.where.textContent = `${width}×${height} pixels · ${where}`;
  }
}

const place = (name) => (FRONT.includes(name) ? FRONT.indexOf(name) : FRONT.length);

function fieldOf(name, setting, known) {
  const id = `setting-${++made}`;
  const usual = known.defaults?.[name] ?? setting.default;
  const input = inputOf(id, setting, usual);
  const label = make("label", { for: id, textContent: words(name) });
  const help = make("small", { id: `${id}-help`, textContent: plain(setting.description ?? "") });
  input.setAttribute("aria-describedby", help.id);
  const rows = input.type === "checkbox" ? [make("span", { className: "check" }, input, label)] : [label, input];
  return [make("div", { className: "field" }, ...rows, help), input];
}

function inputOf(id, setting, usual) {
  if (setting.type === "boolean") return make("input", { id, type: "checkbox", defaultChecked: usual === true });
  if (setting.choices?.length) {
    const others = setting.choices.filter((value) => value !== usual);
    const options = others.map((value) => make("option", { value, textContent: value }));
    return make("select", { id }, make("option", { value: "", textContent: shown(usual) }), ...options);
  }
  const number = ["integer", "number"].includes(setting.type);
  const input = make("input", { id, type: number ? "number" : "text", placeholder: shown(usual) });
  input.autocomplete = "off";
  if (number) input.step = setting.type === "integer" ? "1" : "any";
  return input;
}

function valueOf(input) {
  if (input.type === "checkbox") return input.checked === input.defaultChecked ? null : input.checked;
  const text = input.value.trim();
  if (text === "") return null;
  return input.type === "number" ? Number(text) : text;
}

function copyValue(from, to) {
  if (to.type === "checkbox") to.checked = from.checked;
  else if (to.tagName !== "SELECT" || [...to.options].some(({ value }) => value === from.value)) {
    to.value = from.value;
  }
}

/** A default for people: a ramp is START:END, a straight one its number. */
function shown(value) {
  if (value === null || value === undefined) return "none";
  if (!Array.isArray(value)) return String(value);
  return value[0] === value[1] ? String(value[0]) : value.join(":");
}

/** Descriptions are of the command line: options are named as the fields here. */
const plain = (text) => text.replace(/--([a-z-]+)/g, (_, name) => name.replaceAll("-", " "));
