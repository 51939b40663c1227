/** A dialog that shows requests as code to copy. */

import { LANGUAGES } from "../api/snippets.js";
import { copied, select } from "./clipboard.js";
import { button, el } from "./dom.js";

/** @import {Call} from "../api/call.js" */

/** @param {Call[]} calls */
export function showSnippets(calls) {
  const code = el("code");
  const said = el("span", { role: "status", class: "note" });
  const tabs = Object.keys(LANGUAGES).map((language) =>
    button(language, () => show(language), { "aria-pressed": "false" }),
  );
  const show = (/** @type {string} */ language) => {
    code.textContent = calls.length > 0 ? LANGUAGES[language](calls) : "This view has sent no request yet.";
    for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.textContent === language));
    said.textContent = "";
  };
  const copy = async () => {
    if (await copied(code.textContent ?? "")) {
      said.textContent = "Copied.";
    } else {
      select(code);
      said.textContent = "Selected: copy it with the keyboard.";
    }
  };
  const dialog = el(
    "dialog",
    { class: "snippets", "aria-labelledby": "snippets-title", onclose: () => dialog.remove() },
    el("h2", { id: "snippets-title" }, `The ${calls.length === 1 ? "request" : "requests"} as code`),
    el("div", { class: "row", role: "group", "aria-label": "Language" }, ...tabs),
    el("pre", { tabindex: "0" }, code),
    el(
      "div",
      { class: "row" },
      button("Copy", copy, { class: "primary" }),
      button("Close", () => dialog.close()),
      said,
    ),
  );
  document.body.append(dialog);
  show(Object.keys(LANGUAGES)[0]);
  dialog.showModal();
}
