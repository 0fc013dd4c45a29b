/** Making and finding elements. */

export const $ = (id) => document.getElementById(id);

/** A new element: names with a dash, `role`, `for` and `list` are attributes, others properties. */
export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.includes("-") || ["role", "for", "list"].includes(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** A new element of SVG with its attributes. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The contents of a template, and its parts by their `data-part`. */
export function copyOf(id) {
  const root = $(id).content.firstElementChild.cloneNode(true);
  const parts = {};
  for (const part of root.querySelectorAll("[data-part]")) parts[part.dataset.part] = part;
  return [root, parts];
}

/** Another text for an element; the same again would undo a click that is under way, and be read twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A name of a setting or a stage for people: `top_k` is "Top k". */
export function words(name) {
  const text = name.replaceAll("_", " ");
  return text[0].toUpperCase() + text.slice(1);
}

/** A number as short as it can be read. */
export function short(number) {
  if (!Number.isFinite(number)) return "–";
  const digits = Math.abs(number) >= 100 ? 0 : Math.abs(number) >= 10 ? 1 : 2;
  return String(Number(number.toFixed(digits)));
}
