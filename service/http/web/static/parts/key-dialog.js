/** Asks for an access key. It stays in memory: closing or reloading the page forgets it. */

import { button, el } from "./dom.js";

/**
 * @param {string} refusal the server's sentence
 * @returns {Promise<string | null>} null: the user has none
 */
export function keyFromUser(refusal) {
  asking ??= ask(refusal).finally(() => (asking = null)); // one dialog for all requests that wait for it
  return asking;
}

/** @type {Promise<string | null> | null} */
let asking = null;

/** @param {string} refusal @returns {Promise<string | null>} */
function ask(refusal) {
  return new Promise((resolve) => {
    const field = el("input", {
      type: "password",
      autocomplete: "off",
      id: "access-key",
      required: true,
      pattern: "[\\x21-\\x7e]+", // others cannot stand in a header
      title: "Latin letters, digits and signs, without spaces",
    });
    const dialog = el(
      "dialog",
      {
        "aria-labelledby": "key-title",
        onclose: () => {
          dialog.remove();
          resolve(dialog.returnValue === "use" && field.value ? field.value : null);
        },
      },
      el(
        "form",
        { method: "dialog" },
        el("h2", { id: "key-title" }, "Access key"),
        el("p", {}, refusal),
        el("label", { class: "field", for: "access-key" }, el("span", {}, "Key"), field),
        el(
          "p",
          { class: "note" },
          "It is kept in this page's memory only, and gone when the page is closed or reloaded.",
        ),
        el(
          "div",
          { class: "row" },
          el("button", { value: "use", class: "primary" }, "Use it"),
          button("Cancel", () => dialog.close()),
        ),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}
