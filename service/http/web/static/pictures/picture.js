/** A picture of the page, and what it is called. */

/**
 * @import {Upload} from "../api/call.js"
 *
 * @typedef {{file: string, name: string, texts: string[], drawing: boolean}} Sample
 *
 * @typedef {Object} Picture
 * @property {string} id "sample:FILE", or "own:" and what its bytes are
 * @property {string} name
 * @property {Upload} upload its bytes
 * @property {HTMLCanvasElement | null} image upright; null if this browser cannot draw it, or if it is not chosen
 * @property {HTMLCanvasElement | null} [small] the same for thumbnails; null if this browser cannot draw it, undefined
 *   until it is in view
 * @property {number} width of the whole picture, upright; 0 if it was not drawn
 * @property {number} height
 * @property {Sample | null} sample
 */

/** For people. @param {Picture} picture */
export function titleOf({ name, sample }) {
  return sample?.name ?? name;
}

/** Equal bytes have equal ids: cyrb53, 53 bits, which only has to tell one user's pictures apart. @param {Blob} blob */
export async function idOf(blob) {
  let [a, b] = [0xdeadbeef, 0x41c6ce57];
  for (const byte of new Uint8Array(await blob.arrayBuffer())) {
    a = Math.imul(a ^ byte, 2654435761);
    b = Math.imul(b ^ byte, 1597334677);
  }
  a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909);
  return `own:${(2 ** 32 * (2097151 & b) + (a >>> 0)).toString(36)}-${blob.size.toString(36)}`;
}
