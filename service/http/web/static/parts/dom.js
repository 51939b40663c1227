/** Elements without markup in strings. */

/**
 * An element.
 *
 * Properties that begin with `on` are listeners (`onclick`), `class` and the rest are attributes; `true` is an empty
 * attribute, `false` and `null` none.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number | boolean | null | undefined | ((event: any) => void)>} [properties]
 * @param {...(Node | string | null | undefined)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/**
 * A field with its label.
 *
 * @param {string} label
 * @param {HTMLElement} field
 * @param {HTMLElement} [value] of a slider, in words: a span.value that stands behind the label
 */
export function labelled(label, field, value) {
  field.setAttribute("aria-label", label); // its name is not the value or the options too
  return el("label", { class: "field" }, el("span", {}, label, value && " ", value), field);
}

const FOCUSABLE = ":is(button, select, textarea, input, summary, [tabindex]):not(:disabled, [hidden], [tabindex='-1'])";

/**
 * Put these in place of an element's children. The focus goes from an element that is gone to the one of its name, or
 * else to the one in its place. If they stand there already, nothing moves: a slider is still held.
 *
 * @param {Element} element
 * @param {...Node} children
 */
export function put(element, ...children) {
  const known = element.childNodes;
  if (known.length === children.length && children.every((child, index) => child === known[index])) return;
  const before = [...element.querySelectorAll(FOCUSABLE)];
  const at = before.findIndex((each) => each === document.activeElement);
  element.replaceChildren(...children);
  if (at < 0 || before[at] === document.activeElement) return;
  const now = /** @type {HTMLElement[]} */ ([...element.querySelectorAll(FOCUSABLE)]);
  const name = nameOf(before[at]);
  const alike = now.filter((each) => nameOf(each) === name);
  const turn = before.slice(0, at).filter((each) => nameOf(each) === name).length;
  (alike[Math.min(turn, alike.length - 1)] ?? now[Math.min(at, now.length - 1)])?.focus({ preventScroll: true });
}

/** @param {Element} control */
function nameOf(control) {
  return `${control.tagName} ${control.getAttribute("aria-label") ?? control.closest("label")?.textContent ?? control.textContent}`;
}

/**
 * @typedef {string | {value: string, text: string}} Option
 */

/**
 * A select of these values.
 *
 * @param {Option[]} options
 * @param {string} chosen
 * @param {(value: string) => void} onchange
 */
export function choice(options, chosen, onchange) {
  const select = el("select", { onchange: () => onchange(select.value) });
  offer(select, options, chosen);
  return select;
}

/**
 * Give a select other values.
 *
 * @param {HTMLSelectElement} select
 * @param {Option[]} options
 * @param {string} chosen
 */
export function offer(select, options, chosen) {
  select.replaceChildren(
    ...options.map((option) => {
      const { value, text } = typeof option === "string" ? { value: option, text: option } : option;
      return el("option", { value, selected: value === chosen }, text);
    }),
  );
}

/**
 * A button.
 *
 * @param {string} text
 * @param {() => void} onclick
 * @param {Record<string, string | boolean>} [properties]
 */
export function button(text, onclick, properties = {}) {
  return el("button", { type: "button", onclick, ...properties }, text);
}

/**
 * The element of the page with this id, which index.html has.
 *
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`The page has no element #${id}.`);
  return found;
}

/**
 * Offer a file to save.
 *
 * @param {Blob} blob
 * @param {string} name
 */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
