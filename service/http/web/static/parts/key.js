/** The access key, where the server wants one: a dialog that asks for it, and a button that forgets it. */

import { accessKey, forgetKey } from "../api/access-key.js";
import { onKeyNeeded } from "../api/call.js";
import { button, byId, el } from "./dom.js";

/** Ask when a request needs a key. While there is one, a button stands in the page's head. */
export function startKey() {
  onKeyNeeded(keyFromUser);
  const forget = button("Forget key", () => {
    forgetKey();
    location.reload(); // what the key has shown is gone too
  });
  forget.title = "Forget the access key that this tab sends";
  const show = () => void (forget.hidden = accessKey() === null);
  window.addEventListener("keychange", show);
  show();
  byId("theme").before(forget);
}

/** @type {Promise<string | null> | null} */
let asking = null;

/**
 * @param {string} refusal the server's sentence
 * @param {boolean} isWrong whether the request had a key
 * @returns {Promise<string | null>} null: the user has none
 */
function keyFromUser(refusal, isWrong) {
  asking ??= ask(refusal, isWrong).finally(() => (asking = null)); // one dialog for all requests that wait for it
  return asking;
}

/** @param {string} refusal @param {boolean} isWrong @returns {Promise<string | null>} */
function ask(refusal, isWrong) {
  return new Promise((resolve) => {
    const field = el("input", {
      type: "password",
      autocomplete: "off",
      id: "access-key",
      required: true,
      pattern: "[\\x21-\\x7e]+", // others cannot stand in a header
      title: "Latin letters, digits and signs, without spaces",
      "aria-describedby": "key-refusal key-note",
    });
    const dialog = el(
      "dialog",
      {
        class: "key",
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
        isWrong ? el("p", { class: "problem", role: "alert" }, "The server does not take this key.") : null,
        el("p", { id: "key-refusal" }, refusal),
        el("label", { class: "field", for: "access-key" }, el("span", {}, "Key"), field),
        el(
          "p",
          { class: "note", id: "key-note" },
          "Whoever runs this server gives keys out. This tab keeps yours until it is closed or you press “Forget key”, " +
            "and sends it to this server alone.",
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
    field.focus();
  });
}
