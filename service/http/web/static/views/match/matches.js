/** The best matches between the tokens of two pictures. */

import { patchesOf } from "../../api/embed.js";
import { compute } from "../../numbers/compute.js";
import { addBlock, mutualPairs, noMatches } from "../../numbers/matching.js";

/**
 * @import {Tokens} from "../../api/embed.js"
 * @import {Best, Pair} from "../../numbers/matching.js"
 * @import {Task} from "../../parts/work.js"
 *
 * @typedef {{tokens: [Tokens, Tokens], forth: Best, back: Best, pairs: Pair[]}} Matches
 */

/** Products of two numbers that the worker does before it is asked again: about a tenth of a second. */
const BLOCK_PRODUCTS = 2e8;

/**
 * By blocks, so that it can be stopped: 1369 tokens against as many, of 1024 numbers, are 1.9 billion products.
 *
 * @param {Tokens} left
 * @param {Tokens} right
 * @param {Task} task
 * @returns {Promise<Matches>}
 */
export async function matchesOf(left, right, { signal, progress }) {
  const [rows, others] = [patchesOf(left, "unit"), patchesOf(right, "unit")];
  const { width } = left;
  const count = rows.length / width;
  const step = Math.max(1, Math.floor(BLOCK_PRODUCTS / others.length));
  const all = { forth: noMatches(count), back: noMatches(others.length / width) };
  for (let first = 0; first < count; first += step) {
    signal.throwIfAborted();
    if (count > step) progress(first, count);
    const block = rows.slice(first * width, (first + step) * width);
    addBlock(all, await compute("bestMatches", [block, others, width]), first);
  }
  signal.throwIfAborted();
  return { tokens: [left, right], ...all, pairs: mutualPairs(all.forth, all.back) };
}
