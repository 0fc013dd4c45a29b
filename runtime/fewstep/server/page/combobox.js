/** A list to search in: a text field above the options that contain what is typed. */

import { make } from "./dom.js";

const SHOWN = 100;

export class Combobox {
  /**
   * @param {HTMLInputElement} input with role combobox
   * @param {HTMLUListElement} list with role listbox
   */
  constructor(input, list) {
    this.input = input;
    this.list = list;
    this.options = [];
    this.active = -1;
    input.addEventListener("click", () => this.#open(""));
    input.addEventListener("input", () => this.#open(input.value));
    input.addEventListener("keydown", (event) => this.#key(event));
    input.addEventListener("focus", () => input.select());
    input.addEventListener("blur", () => this.#close());
    list.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the field keeps the focus
      const row = event.target.closest("[role=option]");
      if (row) this.#choose([...list.children].indexOf(row));
    });
  }

  /** @param {{label: string, value: string, id: string}[]} options the first is chosen unless the text is one */
  set(options) {
    this.options = options;
    if (!this.#found()) this.input.value = options[0]?.label ?? "";
  }

  /** The value of the option whose label is in the field; else what is typed, such as an id. */
  get value() {
    const found = this.#found();
    return found && found.id !== this.input.value.trim() ? found.value : this.input.value.trim();
  }

  #found() {
    const typed = this.input.value.trim().toLowerCase();
    return this.options.find(({ label, id }) => label.toLowerCase() === typed || id === typed);
  }

  #open(typed) {
    const sought = typed.trim().toLowerCase();
    const rank = ({ label }) => label.toLowerCase().indexOf(sought);
    const matches = this.options.filter((each) => rank(each) >= 0 || each.id === sought);
    matches.sort((one, other) => (rank(one) > 0) - (rank(other) > 0));
    const rows = matches.slice(0, SHOWN).map(({ label }, index) =>
      make("li", { role: "option", id: `${this.list.id}-${index}`, textContent: label }),
    );
    this.list.replaceChildren(...rows);
    this.list.hidden = rows.length === 0;
    this.input.setAttribute("aria-expanded", String(rows.length > 0));
    const chosen = matches.findIndex(({ label }) => label === this.input.value);
    this.#activate(Math.min(sought || chosen >= 0 ? Math.max(0, chosen) : -1, rows.length - 1));
  }

  #close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.active = -1;
  }

  #activate(index) {
    this.list.children[this.active]?.removeAttribute("aria-selected");
    this.active = index;
    const row = this.list.children[index];
    if (!row) return this.input.removeAttribute("aria-activedescendant");
    row.setAttribute("aria-selected", "true");
    row.scrollIntoView({ block: "nearest" });
    return this.input.setAttribute("aria-activedescendant", row.id);
  }

  #choose(index) {
    this.input.value = this.list.children[index].textContent;
    this.#close();
    this.input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  #key(event) {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move && this.list.hidden) this.#open("");
    else if (move) {
      const count = this.list.children.length;
      this.#activate((this.active + move + count) % count);
    } else if (event.key === "Enter" && !this.list.hidden && this.active >= 0) this.#choose(this.active);
    else if (event.key === "Escape" && !this.list.hidden) this.#close();
    else return;
    event.preventDefault();
  }
}
