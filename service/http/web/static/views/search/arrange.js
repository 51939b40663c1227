/** The order of elements. */

const MOVE_MS = 250;

/**
 * Put elements in this order. They move to their places, unless the user wants no motion. The focus stays where it is:
 * an element that is put elsewhere loses it.
 *
 * @param {HTMLElement} list
 * @param {HTMLElement[]} elements
 */
export function arrange(list, elements) {
  if (list.children.length === elements.length && elements.every((each, at) => each === list.children[at])) return;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const moving = isStill ? [] : elements.filter(({ isConnected }) => isConnected);
  const before = moving.map((element) => element.getBoundingClientRect());
  const focused = /** @type {HTMLElement | null} */ (list.contains(document.activeElement) && document.activeElement);
  list.replaceChildren(...elements);
  if (focused?.isConnected) focused.focus({ preventScroll: true });
  const after = moving.map((element) => element.getBoundingClientRect()); // all, before any is changed again
  moving.forEach((element, index) => {
    const { left, top } = before[index];
    const now = after[index];
    if (Math.min(top, now.top) > innerHeight || Math.max(top, now.top) < -innerHeight) return; // nobody sees it
    const from = `translate(${left - now.left}px, ${top - now.top}px)`;
    element.animate([{ transform: from }, { transform: "none" }], { duration: MOVE_MS, easing: "ease-out" });
  });
}
