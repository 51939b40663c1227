/** The body of a request as part of a form: fields, JSON to edit, or one file. */

import { el, labelled } from "../parts/dom.js";
import { fieldsOf, fileField } from "./fields.js";
import { layOut } from "./json.js";

/** @import {Call} from "../api/call.js" */
/** @import {Schema} from "./fields.js" */

/**
 * `part` gives the call's part that holds the body. It throws an error whose message is for people.
 * @typedef {{elements: HTMLElement[], part: () => Pick<Call, "form" | "json" | "file">}} Body
 */

/**
 * @param {string} media type
 * @param {{schema: Schema, example?: unknown}} content as openapi.json has it
 * @param {string} anchor of the operation
 * @returns {Body}
 */
export function bodyOf(media, { schema, example }, anchor) {
  if (media === "multipart/form-data") return formBody(schema, anchor);
  if (media === "application/json") return jsonBody(schema, example ?? {});
  return fileBody(media);
}

/** Whether the options of an operation stand in a body of this media type, and so not in the query. @param {string} media */
export function holdsOptions(media) {
  return media === "multipart/form-data" || media === "application/json";
}

/** @param {Schema} schema @param {string} anchor @returns {Body} */
function formBody(schema, anchor) {
  const fields = fieldsOf(schema, anchor);
  return {
    elements: fields.map((field) => field.element),
    part: () => {
      const form = fields.flatMap(({ name, values }) => values().map((value) => /** @type {const} */ ([name, value])));
      return form.length > 0 ? { form: form.map(([name, value]) => [name, value]) } : {};
    },
  };
}

/** @param {string} media @returns {Body} */
function fileBody(media) {
  const file = fileField("file", { required: true, type: media.endsWith("*") ? undefined : media });
  return { elements: [file.element], part: () => ({ file: file.values()[0] }) };
}

/**
 * JSON to edit. A picked file is written "@name" in it, and is sent as its data: URI.
 *
 * @param {Schema} schema
 * @param {unknown} example
 * @returns {Body}
 */
function jsonBody(schema, example) {
  const area = el("textarea", { rows: 8, spellcheck: "false", class: "json" });
  area.value = layOut(example);
  const files = fileField("files for the JSON", { multiple: true });
  const name = (/** @type {{name: string}} */ file) => `@${file.name}`;
  const parsed = () => {
    try {
      return JSON.parse(area.value);
    } catch (error) {
      throw new Error(`The body is not JSON. ${error instanceof Error ? error.message : ""}`);
    }
  };
  files.element.addEventListener("change", () => {
    if (schema.properties?.images) area.value = layOut({ ...parsed(), images: files.values().map(name) });
  });
  return {
    elements: [
      labelled("JSON", area),
      files.element,
      el(
        "p",
        { class: "note" },
        "In the JSON, ",
        el("code", {}, '"@name"'),
        " stands for the picked file of that name, as a data: URI.",
      ),
    ],
    part: () => {
      const named = new Map(files.values().map((file) => [name(file), file]));
      return { json: withFiles(parsed(), (text) => named.get(text) ?? text) };
    },
  };
}

/**
 * A JSON value with other values in place of its strings.
 *
 * @param {unknown} value
 * @param {(text: string) => unknown} replace
 * @returns {unknown}
 */
function withFiles(value, replace) {
  if (typeof value === "string") return replace(value);
  if (Array.isArray(value)) return value.map((each) => withFiles(each, replace));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, withFiles(each, replace)]));
}
