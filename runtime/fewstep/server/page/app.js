/** The page of `fewstep serve`: reads the form, runs requests one after the other, shows the answers. */

import { ApiError, events, hasKey, keepKey, models } from "./api.js";
import { Combobox } from "./combobox.js";
import { commands, copyText } from "./curl.js";
import { $, make, setText } from "./dom.js";
import { edits, Painter, receive } from "./painter.js";
import { Panel } from "./panel.js";
import { ModelForm } from "./settings.js";

const LARGEST_SEED = Number.MAX_SAFE_INTEGER;
/** Pictures before the last that are asked for; of more steps some are left out. */
const MOST_PARTIAL = 32;
const OPENING_MS = 1000;
const THEME = "fewstep-theme";

class Page {
  constructor(served) {
    this.classes = new Combobox($("class"), $("classes"));
    this.form = new ModelForm($("model"), served, "Model");
    this.other = new ModelForm($("other"), served, "Model");
    this.painter = new Painter();
    this.panels = [0, 1].map(() => new Panel($("results"), (url) => this.#editThis(url)));
    this.running = null;
    this.turn = 0;
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#run();
    });
    $("ask").addEventListener("change", () => this.#changed());
    $("stop").addEventListener("click", () => this.running?.abort());
    $("random").addEventListener("click", () => {
      $("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    });
    $("copy").addEventListener("click", () => this.#copy());
    $("command").addEventListener("toggle", () => this.#command());
    receive((file) => this.#take(file));
    this.form.onChange(() => this.#condition());
    this.#condition();
    this.#shape();
  }

  /** What the server says of its models, once they are open. */
  update(served) {
    this.form.update(served);
    this.other.update(served);
  }

  get mode() {
    return document.querySelector("[name=mode]:checked").value;
  }

  /** The condition's field is of the model: its classes, or a prompt. */
  #condition() {
    const { text, classes, class_ids: ids } = this.form.model.fewstep;
    $("class-field").hidden = text;
    $("prompt-field").hidden = !text;
    if (text) return;
    const names = classes ?? [];
    const options = (ids ?? names.map((_, index) => index)).map((id, index) => {
      const name = names[index];
      const unique = name && names.indexOf(name) === names.lastIndexOf(name);
      if (unique) return { label: name, value: name, id: String(id) };
      return { label: name ? `${name} (${id})` : `class ${id}`, value: String(id), id: String(id) };
    });
    this.classes.set(options);
  }

  /** What was said of the last request is not of what is in the form. */
  #changed() {
    if (!this.running) this.#say("");
    this.#shape();
  }

  /** What of the form is there depends on the mode and on the model. */
  #shape() {
    const { editable } = this.form.model.fewstep;
    $("edit-mode").hidden = !editable;
    if (!editable && this.mode === "edit") document.querySelector("[name=mode]").checked = true;
    $("edit").hidden = this.mode !== "edit";
    $("other").hidden = this.mode !== "compare";
    $("count-field").hidden = this.mode === "compare";
    $("same").hidden = JSON.stringify(this.form.values()) !== JSON.stringify(this.other.values());
    setText($("go"), { generate: "Generate", edit: "Edit", compare: "Compare" }[this.mode]);
    this.#command();
  }

  /** The requests that the form asks for, each with its path, model and fields. */
  async #requests() {
    checkNumbers();
    const seed = $("seed").value.trim() || "0";
    if (!/^\d+$/.test(seed) || Number(seed) > LARGEST_SEED) {
      throw new ApiError(`The seed must be a whole number, 0 to ${LARGEST_SEED}.`, 0);
    }
    const n = this.mode === "compare" ? 1 : Number($("count").value || 1);
    const shared = { ...this.#wanted(), n, seed: Number(seed) };
    const forms = this.mode === "compare" ? [this.form, this.other] : [this.form];
    let edited = {};
    if (this.mode === "edit") {
      if (!this.painter.ready) throw new ApiError("Choose a picture to edit first.", 0);
      edited = await edits(this.painter);
      checkEdit(edited, this.painter);
    }
    const path = this.mode === "edit" ? "v1/images/edits" : "v1/images/generations";
    return forms.map((form) => ({ path, form, fields: { ...form.values(), ...shared, ...edited } }));
  }

  /** What the pictures are of. */
  #wanted() {
    if (!this.form.model.fewstep.text) return { prompt: this.classes.value };
    const negative = $("negative").value.trim();
    return { prompt: $("prompt").value, ...(negative && { negative_prompt: negative }) };
  }

  async #run() {
    if (this.running) return;
    this.running = new AbortController();
    this.#busy(true);
    let panel = this.panels[0];
    try {
      const requests = await this.#requests();
      showResults();
      for (const [index, request] of requests.entries()) {
        panel = this.panels[index];
        await this.#stream(panel, request, this.running.signal);
      }
      this.#say("Done.");
    } catch (error) {
      if (error.name === "AbortError") this.#cancelled(panel);
      else this.#failed(panel, error);
    } finally {
      this.running = null;
      this.#busy(false);
    }
  }

  async #stream(panel, { path, form, fields }, signal) {
    const { model } = form;
    const label = model.fewstep.text ? fields.prompt : $("class").value;
    const { editable } = model.fewstep;
    const partial = $("steps").checked ? MOST_PARTIAL : 0;
    panel.start(titleOf(fields), { count: fields.n, label, editable, partial });
    let done = 0;
    this.#say("Waiting for the server …");
    for await (const event of events(path, { ...fields, stream: true, partial_images: partial }, signal)) {
      // The last result stays until there is another, which is then the only one.
      if (panel === this.panels[0] && panel.waits) this.panels[1].clear();
      if (event.type.endsWith(".partial_image")) {
        panel.partial(event);
        $("progress").value = (event.fewstep.step + 1) / event.fewstep.steps;
        this.#say(event.fewstep.caption);
      } else if (event.type.endsWith(".completed")) {
        panel.completed(event);
        done += 1;
      }
    }
    if (done < fields.n) throw new ApiError("The answer ended before the pictures were done.", 0);
  }

  #cancelled(panel) {
    panel.fail("Cancelled.");
    this.#say("Cancelled.");
  }

  #failed(panel, error) {
    panel.fail(error.status === 401 ? keyProblem() : error.message);
    this.#say("");
    if (error.status === 401) askForKey();
    else showResults();
    if (error.input) reveal(error.input);
  }

  #say(text) {
    setText($("status"), text);
  }

  #busy(busy) {
    $("go").disabled = busy;
    $("stop").disabled = !busy;
    $("progress").hidden = !busy;
    $("progress").value = 0;
    $("nothing").hidden = true;
    $("results").setAttribute("aria-busy", String(busy));
    if (!busy && document.activeElement === document.body) $("go").focus();
  }

  async #editThis(url) {
    await this.#take(blobOf(url));
    document.querySelector("[value=edit]").checked = true;
    this.#shape();
    document.querySelector("[value=edit]").focus();
  }

  async #take(blob) {
    try {
      this.#changed();
      await this.painter.take(blob);
      $("file-problem").textContent = "";
    } catch (error) {
      $("file-problem").textContent = error.message;
    }
  }

  /** Show the requests as commands, or what is wrong with them; tells whether they are some. */
  async #command() {
    if (!$("command").open) return false;
    const turn = ++this.turn;
    let requests = [];
    let text = "";
    try {
      requests = await this.#requests();
      text = commands(requests);
    } catch (error) {
      text = error.message;
    }
    if (turn !== this.turn) return false; // the form has changed meanwhile
    $("curl").textContent = text;
    const files = Object.entries(requests[0]?.fields ?? {}).filter(([, value]) => value instanceof Blob);
    for (const link of $("curl-files").children) URL.revokeObjectURL(link.href);
    const links = files.map(([name, blob]) =>
      make("a", {
        className: "button",
        href: URL.createObjectURL(blob),
        download: `${name}.png`,
        textContent: `Save ${name}.png`,
      }),
    );
    $("curl-files").replaceChildren(...links);
    return requests.length > 0;
  }

  async #copy() {
    if (!(await this.#command())) return;
    try {
      await copyText($("curl"));
      this.#say("Copied.");
    } catch {
      this.#say("The browser does not let this page copy; select the command instead.");
    }
  }
}

/** Refuse numbers that their fields do not take, wherever they are hidden in details. */
function checkNumbers() {
  for (const input of $("ask").elements) {
    if (input.willValidate && !input.validity.valid && !input.closest("[hidden]")) {
      const name = input.labels[0].textContent.trim();
      const { rangeUnderflow, rangeOverflow } = input.validity;
      const range = (rangeUnderflow || rangeOverflow) && input.max !== "";
      const problem = range ? `${input.min} to ${input.max}.` : input.validationMessage;
      throw Object.assign(new ApiError(`${name}: ${problem}`, 0), { input });
    }
  }
}

/** Refuse an edit that says nothing of what is made anew, or two things, in the words of the page. */
function checkEdit({ mask, outpaint, strength, blend }, painter) {
  if (strength === undefined && !mask && !outpaint && !painter.isClear()) {
    throw new ApiError("Mark a part of the picture (paint on it), let it grow, or give a strength.", 0);
  }
  if (strength !== undefined && (mask || outpaint || blend)) {
    throw new ApiError(
      "A strength changes the whole picture: leave it empty, or clear the marks, do not let the picture " +
        "grow, and do not keep pixels.",
      0,
    );
  }
}

/** Bring a field into sight, also out of details. */
function reveal(input) {
  for (let each = input.closest("details"); each; each = each.parentElement.closest("details")) {
    each.open = true;
  }
  input.focus();
}

/** The bytes of a `data:` address; the page's policy lets no request read it. */
function blobOf(url) {
  const [head, text] = url.split(",");
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

/** The pictures come into sight: they are below the form, or scroll beside it. */
function showResults() {
  if (matchMedia("(max-width: 46rem)").matches) $("results").scrollIntoView();
  else $("results").scrollTop = 0;
}

function titleOf(fields) {
  const { model, schedule, preset, steps, iterations, scales } = fields;
  const count = steps ?? iterations ?? scales;
  return [model, preset, schedule, count && `${count} steps`].filter(Boolean).join(" · ");
}

function problem(message) {
  $("problem").textContent = message;
  $("problem").hidden = message === "";
}

const keyProblem = () => (hasKey() ? "That key is wrong." : "This server needs its key.");

function askForKey() {
  problem(keyProblem());
  $("key-form").hidden = false;
  $("key").focus();
  $("key").select();
}

async function start() {
  try {
    const served = await models();
    problem("");
    $("key-form").hidden = true;
    $("main").hidden = false;
    if (page) page.update(served);
    else page = new Page(served);
    if (served.some((each) => !each.fewstep.backend)) setTimeout(start, OPENING_MS);
  } catch (error) {
    if (error.status === 401) askForKey();
    else problem(error.message);
  }
}

function followTheme() {
  const kept = localStorage.getItem(THEME) ?? "";
  $("theme").value = kept;
  document.documentElement.dataset.theme = kept;
  $("theme").addEventListener("change", () => {
    localStorage.setItem(THEME, $("theme").value);
    document.documentElement.dataset.theme = $("theme").value;
  });
}

let page = null;
followTheme();
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey($("key").value);
  start();
});
start();
