/** The clipboard, which browsers offer on https and localhost only. */

/** @param {string} text @returns {Promise<boolean>} whether it was copied */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

/** For users to copy with the keyboard. @param {Node} node */
export function select(node) {
  getSelection()?.selectAllChildren(node);
}
