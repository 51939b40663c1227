/** JSON for people: what is short stands on one line within the whole, what is long can be cut. */

const WIDTH = 100;

/**
 * JSON over several lines.
 *
 * @param {unknown} value as JSON has it
 * @param {{items?: number, characters?: number}} [most] of a list, and of a string: what is longer is cut and says so
 * @param {string} [indent]
 * @returns {string}
 */
export function layOut(value, most = {}, indent = "") {
  const { items = Infinity, characters = Infinity } = most;
  if (typeof value === "string" && value.length > characters) {
    return `${JSON.stringify(value.slice(0, characters))}… ${value.length - characters} characters more`;
  }
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const within = `${indent}  `;
  /** @type {string[]} */
  let parts;
  if (Array.isArray(value)) {
    parts = value.slice(0, items).map((each) => layOut(each, most, within));
    if (value.length > items) parts.push(`… ${value.length - items} more`);
  } else {
    parts = Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${layOut(each, most, within)}`);
  }
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = `${open}${parts.join(", ")}${close}`;
  const isFlat = Array.isArray(value) && value.every((each) => typeof each === "number");
  const isShort = indent !== "" && line.length + indent.length <= WIDTH && !line.includes("\n");
  if (isFlat || isShort || parts.length === 0) return line;
  return `${open}\n${parts.map((part) => within + part).join(",\n")}\n${indent}${close}`;
}
