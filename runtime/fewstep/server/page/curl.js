/** Requests as commands for a terminal. */

import { address, hasKey } from "./api.js";

/** @param {{path: string, fields: object}[]} requests Blobs are files of their fields' names */
export const commands = (requests) => requests.map(command).join("\n\n");

function command({ path, fields }) {
  const lines = [`curl ${quoted(address(path))}`];
  if (hasKey()) lines.push('-H "Authorization: Bearer $FEWSTEP_API_KEY"');
  if (Object.values(fields).some((value) => value instanceof Blob)) {
    for (const [name, value] of Object.entries(fields)) {
      lines.push(`-F ${quoted(`${name}=${value instanceof Blob ? `@${name}.png` : value}`)}`);
    }
  } else {
    lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(fields))}`);
  }
  return lines.join(" \\\n  ");
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Put the text of an element on the clipboard, which needs a secure page or an old command. */
export async function copyText(element) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(element.textContent);
    return;
  }
  getSelection().selectAllChildren(element);
  document.execCommand("copy");
}
