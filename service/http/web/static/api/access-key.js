/**
 * The access key that requests carry. This tab keeps it until it is closed (sessionStorage), for the pages of this server
 * alone: others of the same host have other paths.
 */

const NAME = `visiontower-key ${new URL(".", document.baseURI).pathname}`;

/** For a browser that forbids to keep anything. @type {string | null} */
let inMemory = null;

/** @returns {string | null} null: the user has given none */
export function accessKey() {
  return storage()?.getItem(NAME) ?? inMemory;
}

/** Each change sends the window's event `keychange`. @param {string} key */
export function keepKey(key) {
  inMemory = key;
  storage()?.setItem(NAME, key);
  window.dispatchEvent(new Event("keychange"));
}

export function forgetKey() {
  inMemory = null;
  storage()?.removeItem(NAME);
  window.dispatchEvent(new Event("keychange"));
}

function storage() {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
}
