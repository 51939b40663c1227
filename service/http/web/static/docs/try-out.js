/** A form that sends one operation's request and shows the answer, or the request as code to copy. */

import { sendAnyway } from "../api/call.js";
import { button, choice, el, labelled } from "../parts/dom.js";
import { showSnippets } from "../parts/snippets-dialog.js";
import { answerOf } from "./answer.js";
import { bodyOf, holdsOptions } from "./body.js";
import { textField } from "./fields.js";

/** @import {Call} from "../api/call.js" */
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
  const status = el("div", { role: "status" });
  const answer = el("div", { class: "answer" });
  const run = el("button", { class: "primary" }, "Run");
  const stop = button("Stop", () => running?.abort(), { disabled: true });
  /** @type {AbortController | null} */
  let running = null;

  const send = async () => {
    running = new AbortController();
    stop.disabled = false;
    status.replaceChildren(el("p", { class: "note" }, "Running…"));
    answer.replaceChildren();
    try {
      const started = performance.now();
      const response = await sendAnyway(call(), { signal: running.signal });
      const { facts, body } = await answerOf(response, { started, name: nameOf(operation.path) });
      status.replaceChildren(...facts);
      answer.replaceChildren(...body);
    } catch (error) {
      status.replaceChildren(el("p", { class: "problem" }, running.signal.aborted ? "Stopped." : sentenceOf(error)));
    }
    running = null;
    if (document.activeElement === stop) run.focus();
    stop.disabled = true;
  };
  const showCode = () => {
    try {
      showSnippets([call()]);
    } catch (error) {
      status.replaceChildren(el("p", { class: "problem" }, sentenceOf(error)));
    }
  };
  const form = el(
    "form",
    { onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), running ?? send()) },
    ...elements,
    el("div", { class: "row" }, run, stop, button("Copy as code", showCode)),
  );
  return el("details", { class: "try" }, el("summary", {}, "Try it"), form, status, answer);
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
  const chooseBody = (/** @type {string} */ value) => {
    media = value;
    show();
  };
  const kinds = el(
    "div",
    { class: "row" },
    contents.length > 1 ? labelled("body", choice(Object.keys(bodies), media, chooseBody)) : null,
    accepted.length > 1
      ? labelled(
          "answer",
          choice(accepted, accept, (value) => void (accept = value)),
        )
      : null,
  );
  return {
    elements: [kinds, options],
    call: () => ({
      method: method === "post" ? "POST" : "GET",
      path: inPath.reduce(
        (filled, { name, values }) => filled.replace(`{${name}}`, () => inUrl(values()[0] ?? "")),
        path.slice(1),
      ),
      query: Object.fromEntries(queried().flatMap(({ name, values }) => inCall(name, values()))),
      accept: accepted.length > 1 ? accept : undefined,
      ...bodies[media]?.part(),
    }),
  };
}

/** An option of the query; none where the server's default stands. @param {string} name @param {string[]} values */
function inCall(name, values) {
  if (values.length === 0) return [];
  return [[name, values.length === 1 ? values[0] : values]];
}

/** A path's parameter: an encoder's id stands in it as it is, slashes and all. @param {string} text */
function inUrl(text) {
  return encodeURI(text).replace(/[?#]/g, encodeURIComponent);
}

/** @param {unknown} error */
function sentenceOf(error) {
  return error instanceof Error ? error.message : String(error);
}

/** For the file of an answer. @param {string} path */
function nameOf(path) {
  return path.replace(/[{}]/g, "").slice(1).replaceAll("/", "-");
}
