/** A form that sends one operation's request, shows the answer, and shows the request for a user to copy. */

import { sendAnyway } from "../api.js";
import { button, choice, el, labelled } from "../dom.js";
import { LANGUAGES } from "../snippets.js";
import { answerOf } from "./answer.js";
import { bodyOf, holdsOptions } from "./body.js";
import { textField } from "./fields.js";

/** @import {Call} from "../api.js" */
/** @import {Schema} from "./fields.js" */

/**
 * As openapi.json describes it.
 * @typedef {Object} Operation
 * @property {string} method "get" or "post"
 * @property {string} path with parameters in braces
 * @property {Array<{name: string, in: string, required: boolean, schema: Schema}>} [parameters]
 * @property {{content: Record<string, {schema: Schema, example?: unknown}>}} [requestBody]
 * @property {Record<string, {content?: Record<string, unknown>}>} responses
 */

/**
 * @param {Operation} operation
 * @param {string} model the first one that is served
 */
export function tryOut(operation, model) {
  const { elements, call } = requestOf(operation, model);
  const answer = el("div", { class: "answer", role: "status" });
  const run = el("button", { class: "primary" }, "Run");
  const stop = button("Stop", () => running?.abort(), { hidden: true });
  /** @type {AbortController | null} */
  let running = null;

  const send = async () => {
    running = new AbortController();
    run.disabled = true;
    stop.hidden = false;
    answer.replaceChildren(el("p", { class: "note" }, "Running…"));
    try {
      const started = performance.now();
      const response = await sendAnyway(call(), { signal: running.signal });
      answer.replaceChildren(...(await answerOf(response, { started, name: nameOf(operation.path) })));
    } catch (error) {
      const sentence = running.signal.aborted ? "Stopped." : error instanceof Error ? error.message : String(error);
      answer.replaceChildren(el("p", { class: "problem" }, sentence));
    }
    running = null;
    run.disabled = false;
    stop.hidden = true;
  };
  const copy = copyAs(call);
  const form = el(
    "form",
    {
      onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), running ?? send()),
      oninput: copy.update,
      onchange: copy.update, // of a select, whose own listener comes behind `input`
    },
    ...elements,
    el("div", { class: "row" }, run, stop),
    copy.element,
  );
  return el("details", { class: "try" }, el("summary", {}, "Try it"), form, answer);
}

/**
 * The fields of a request, and the request that they make. `call` throws an error whose message is for people.
 *
 * @param {Operation} operation
 * @param {string} model
 * @returns {{elements: HTMLElement[], call: () => Call}}
 */
function requestOf({ method, path, parameters = [], requestBody, responses }, model) {
  const anchor = `${method}${path}`;
  const fieldsIn = (/** @type {string} */ place) =>
    parameters
      .filter((parameter) => parameter.in === place)
      .map(({ name, schema, required }) => {
        const value = required && name === "model" ? model : "";
        return textField(name, schema, { describedBy: `${anchor}:${name}`, required, value });
      });
  const inPath = fieldsIn("path");
  const inQuery = fieldsIn("query");
  const contents = Object.entries(requestBody?.content ?? {});
  const bodies = Object.fromEntries(contents.map(([media, content]) => [media, bodyOf(media, content, anchor)]));
  const accepted = Object.keys(responses["200"]?.content ?? {});

  let media = contents[0]?.[0] ?? "";
  let accept = accepted[0];
  const queried = () => (holdsOptions(media) ? [] : inQuery);
  const options = el("div", { class: "fields" });
  const show = () => {
    const fields = [...inPath, ...queried()].map((field) => field.element);
    options.replaceChildren(...fields, ...(bodies[media]?.elements ?? []));
  };
  show();
  const kinds = el("div", { class: "row" });
  if (contents.length > 1) {
    kinds.append(
      labelled(
        "body",
        choice(Object.keys(bodies), media, (value) => ((media = value), show())),
      ),
    );
  }
  if (accepted.length > 1)
    kinds.append(
      labelled(
        "answer",
        choice(accepted, accept, (value) => (accept = value)),
      ),
    );
  return {
    elements: [kinds, options],
    call: () => ({
      method: method === "post" ? "POST" : "GET",
      path: inPath.reduce(
        (filled, { name, values }) => filled.replace(`{${name}}`, inUrl(values()[0] ?? "")),
        path.slice(1),
      ),
      query: Object.fromEntries(
        queried().flatMap(({ name, values }) => (values().length > 0 ? [[name, values()]] : [])),
      ),
      accept: accepted.length > 1 ? accept : undefined,
      ...bodies[media]?.part(),
    }),
  };
}

/** A path's parameter: an encoder's id stands in it as it is, slashes and all. @param {string} text */
function inUrl(text) {
  return encodeURI(text).replace(/[?#]/g, encodeURIComponent);
}

/** For the file of an answer. @param {string} path */
function nameOf(path) {
  return path.replace(/[{}]/g, "").slice(1).replaceAll("/", "-");
}

/**
 * The request in a language, to copy.
 *
 * @param {() => Call} call
 */
function copyAs(call) {
  let language = Object.keys(LANGUAGES)[0];
  const text = el("pre", { tabindex: 0, "aria-label": "The request" });
  const update = () => {
    if (!element.open) return;
    try {
      text.textContent = LANGUAGES[language]([call()]);
    } catch (error) {
      text.textContent = error instanceof Error ? error.message : String(error);
    }
  };
  const copied = el("span", { class: "note", role: "status" });
  const copy = async () => {
    await navigator.clipboard.writeText(String(text.textContent));
    copied.textContent = "Copied.";
  };
  const languages = choice(Object.keys(LANGUAGES), language, (value) => ((language = value), update()));
  languages.setAttribute("aria-label", "Language");
  const element = el(
    "details",
    { ontoggle: update },
    el("summary", {}, "The same request as curl, Python or JavaScript"),
    el("div", { class: "row" }, languages, button("Copy", copy), copied),
    text,
  );
  return { element, update };
}
