/** A form's fields, made from JSON schemas. */

import { el, labelled } from "../parts/dom.js";

/** @import {Upload} from "../api/call.js" */

/**
 * The part of JSON Schema that openapi.json uses for options.
 * @typedef {Object} Schema
 * @property {string} [type]
 * @property {string} [format]
 * @property {Schema[]} [anyOf]
 * @property {Schema} [items]
 * @property {string[]} [enum]
 * @property {unknown} [default]
 * @property {string} [example]
 * @property {number} [minimum]
 * @property {number} [maximum]
 * @property {Record<string, Schema>} [properties]
 * @property {string[]} [required]
 */

/**
 * `values` gives what is sent, once for each value. It is empty where the server's default stands.
 * @template {string | Upload} V
 * @typedef {{name: string, element: HTMLElement, values: () => V[]}} Field
 */

/**
 * A field whose values are texts, as a query and a path have them.
 *
 * @param {string} name
 * @param {Schema} schema
 * @param {{describedBy: string, required?: boolean, value?: string}} options the id of the text that says what it means
 * @returns {Field<string>}
 */
export function textField(name, schema, { describedBy, required = false, value = "" }) {
  const kinds = (schema.anyOf ?? [schema]).filter((kind) => kind.type !== "null");
  const kind = kinds.length === 1 ? kinds[0] : { type: "string" };
  const initial = String(schema.default ?? "");
  const properties = { required, "aria-describedby": document.getElementById(describedBy) ? describedBy : null };
  if (kind.enum) {
    const options = [...(schema.default === undefined ? [""] : []), ...kind.enum];
    const select = el(
      "select",
      properties,
      ...options.map((each) => el("option", { selected: each === initial }, each)),
    );
    return field(name, select, () => (select.value === initial ? [] : [select.value]));
  }
  if (kind.type === "boolean") {
    const box = el("input", { type: "checkbox", checked: schema.default === true, ...properties });
    return field(name, box, () => (box.checked === (schema.default === true) ? [] : [String(box.checked)]));
  }
  if (kind.type === "array") {
    const area = el("textarea", { rows: 2, placeholder: "One a line", ...properties });
    return field(name, area, () => area.value.split("\n").filter((line) => line.trim()));
  }
  const isNumber = kind.type === "integer" || kind.type === "number";
  const input = el("input", {
    type: isNumber ? "number" : "text",
    step: kind.type === "integer" ? 1 : isNumber ? "any" : null,
    min: kind.minimum,
    max: kind.maximum,
    placeholder: initial,
    value: value || schema.example,
    list: name === "model" ? "served" : null,
    ...properties,
  });
  return field(name, input, () => (input.value === "" ? [] : [input.value]));
}

/**
 * A field whose values are files.
 *
 * @param {string} name
 * @param {{multiple?: boolean, required?: boolean, type?: string}} [options] type: to be sent as, not as what the file is
 * @returns {Field<Upload>}
 */
export function fileField(name, { multiple = false, required = false, type } = {}) {
  const input = el("input", { type: "file", multiple, required });
  return field(name, input, () =>
    [...(input.files ?? [])].map((file) => ({ name: file.name, blob: type ? new Blob([file], { type }) : file })),
  );
}

/**
 * Fields for the options of an object.
 *
 * @param {Schema} schema
 * @param {string} anchor of the operation: its texts have ids that begin with it
 * @returns {Array<Field<string> | Field<Upload>>}
 */
export function fieldsOf({ properties = {}, required = [] }, anchor) {
  return Object.entries(properties).map(([name, schema]) => {
    const isRequired = required.includes(name);
    if ((schema.items ?? schema).format === "binary") {
      return fileField(name, { multiple: schema.type === "array", required: isRequired });
    }
    return textField(name, schema, { describedBy: `${anchor}:${name}`, required: isRequired });
  });
}

/**
 * @template {string | Upload} V
 * @param {string} name
 * @param {HTMLElement} control
 * @param {() => V[]} values
 * @returns {Field<V>}
 */
function field(name, control, values) {
  return { name, element: labelled(name, control), values };
}
