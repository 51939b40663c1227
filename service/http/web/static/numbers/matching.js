/** Which token of one picture answers which of another: best matches, both ways. Pure; runs in the worker. */

/**
 * @typedef {{index: Int32Array, cosine: Float32Array}} Best for each token the most alike of the others, the first of
 *   equals, and how alike
 * @typedef {{left: number, right: number, cosine: number}} Pair
 */

/**
 * The best matches of rows among others, and of the others among the rows.
 *
 * @param {Float32Array} rows [n, width], each of length 1
 * @param {Float32Array} others [m, width]
 * @param {number} width
 * @returns {{forth: Best, back: Best}}
 */
export function bestMatches(rows, others, width) {
  const forth = noMatches(rows.length / width);
  const back = noMatches(others.length / width);
  for (let row = 0; row < forth.index.length; row++) {
    const cosines = fourAtOnce(rows, row * width, others, width);
    for (let other = 0; other < cosines.length; other++) {
      const cosine = cosines[other];
      if (cosine > forth.cosine[row]) [forth.cosine[row], forth.index[row]] = [cosine, other];
      if (cosine > back.cosine[other]) [back.cosine[other], back.index[other]] = [cosine, row];
    }
  }
  return { forth, back };
}

/** @param {number} count @returns {Best} */
export function noMatches(count) {
  return { index: new Int32Array(count).fill(-1), cosine: new Float32Array(count).fill(-Infinity) };
}

/**
 * The products of a row with all others. Four others at a time: the row's numbers are read a fourth as often.
 *
 * @param {Float32Array} rows
 * @param {number} start of the row
 * @param {Float32Array} others
 * @param {number} width
 */
function fourAtOnce(rows, start, others, width) {
  const count = others.length / width;
  const result = new Float32Array(count);
  for (let other = 0; other < count; other += 4) {
    let [a, b, c, d] = [0, 0, 0, 0];
    const at = other * width;
    const [atB, atC, atD] = [1, 2, 3].map((step) => Math.min(other + step, count - 1) * width); // the last again, past it
    for (let column = 0; column < width; column++) {
      const value = rows[start + column];
      a += value * others[at + column];
      b += value * others[atB + column];
      c += value * others[atC + column];
      d += value * others[atD + column];
    }
    result[other] = a;
    if (other + 1 < count) result[other + 1] = b;
    if (other + 2 < count) result[other + 2] = c;
    if (other + 3 < count) result[other + 3] = d;
  }
  return result;
}

/**
 * Put the matches of a block of rows to those of the blocks before it.
 *
 * @param {{forth: Best, back: Best}} all
 * @param {{forth: Best, back: Best}} block
 * @param {number} first the block's first row
 */
export function addBlock(all, block, first) {
  all.forth.index.set(block.forth.index, first);
  all.forth.cosine.set(block.forth.cosine, first);
  for (let other = 0; other < all.back.index.length; other++) {
    if (block.back.cosine[other] <= all.back.cosine[other]) continue;
    all.back.cosine[other] = block.back.cosine[other];
    all.back.index[other] = block.back.index[other] + first;
  }
}

/**
 * Mutual nearest neighbours: each is the other's best match. The most alike first.
 *
 * @param {Best} left
 * @param {Best} right
 * @returns {Pair[]}
 */
export function mutualPairs(left, right) {
  /** @type {Pair[]} */
  const pairs = [];
  left.index.forEach((other, token) => {
    if (right.index[other] === token) pairs.push({ left: token, right: other, cosine: left.cosine[token] });
  });
  return pairs.sort((a, b) => b.cosine - a.cosine);
}

/** The mean of the highest cosines. @param {Best} best */
export function meanCosine({ cosine }) {
  return cosine.reduce((sum, each) => sum + each, 0) / cosine.length;
}
