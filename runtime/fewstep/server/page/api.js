/** Requests to the server that this page came from, and the events that it answers with. */

const KEY = "fewstep-key";
const PLACE = new URL(".", document.baseURI);

/** What went wrong, in the server's words; `status` is 0 where no answer came. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const keepKey = (key) => sessionStorage.setItem(KEY, key);

/** The models that are served. */
export async function models() {
  const answer = await send("v1/models", {});
  return (await answer.json()).data;
}

/** The address of a path of the API. */
export const address = (path) => new URL(path, PLACE).href;

/** Whether requests carry a key. */
export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

/**
 * Send a request and yield the events of its stream.
 *
 * @param {string} path of the API
 * @param {object} fields of the request; a Blob among them makes it a form with files
 * @param {AbortSignal} signal ends it
 */
export async function* events(path, fields, signal) {
  const answer = await send(path, { method: "POST", signal, ...encoded(fields) });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await read(reader);
    text = (text + (value ?? "")).replaceAll("\r\n", "\n");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = dataOf(block);
      if (data === "" || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(messageOf(event, "The server reports an error."), 500);
      yield event;
    }
    if (done) return;
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection to the server broke off.", 0);
  }
}

function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}

function encoded(fields) {
  const given = Object.entries(fields);
  if (!given.some(([, value]) => value instanceof Blob)) {
    return { body: JSON.stringify(fields), headers: { "Content-Type": "application/json" } };
  }
  const form = new FormData();
  for (const [name, value] of given) {
    if (value instanceof Blob) form.append(name, value, `${name}.png`);
    else form.append(name, String(value));
  }
  return { body: form, headers: {} };
}

/** UTF-8 as a header carries it: a letter a byte. */
const bytesOf = (text) => String.fromCharCode(...new TextEncoder().encode(text));

async function send(path, options) {
  const headers = { ...options.headers };
  if (hasKey()) headers.Authorization = `Bearer ${bytesOf(sessionStorage.getItem(KEY))}`;
  let answer;
  try {
    // Without credentials no browser asks for a password by itself.
    answer = await fetch(address(path), { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?", 0);
  }
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => ({}));
  throw new ApiError(messageOf(found, `The server answered ${answer.status}.`), answer.status);
}

const messageOf = (found, otherwise) => found?.error?.message ?? otherwise;
