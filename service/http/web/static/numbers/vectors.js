/** Rows of numbers: lengths, cosines, the nearest. A matrix is a Float32Array of rows, `width` numbers each. */

/**
 * The length of each row.
 *
 * @param {Float32Array} rows
 * @param {number} width
 * @returns {Float32Array}
 */
export function norms(rows, width) {
  const lengths = new Float32Array(rows.length / width);
  for (let row = 0; row < lengths.length; row++) {
    let sum = 0;
    for (let at = row * width; at < (row + 1) * width; at++) sum += rows[at] * rows[at];
    lengths[row] = Math.sqrt(sum);
  }
  return lengths;
}

/**
 * Each row at length 1; a row of zeros stays one.
 *
 * @param {Float32Array} rows
 * @param {number} width
 * @returns {Float32Array}
 */
export function normalized(rows, width) {
  const lengths = norms(rows, width);
  return rows.map((value, at) => value / (lengths[Math.floor(at / width)] || 1));
}

/**
 * The products of a vector with each row: cosines if all have length 1.
 *
 * @param {Float32Array} rows
 * @param {Float32Array} vector
 * @returns {Float32Array}
 */
export function products(rows, vector) {
  const width = vector.length;
  const result = new Float32Array(rows.length / width);
  for (let row = 0, at = 0; row < result.length; row++) {
    let a = 0;
    let b = 0; // two sums: the processor adds them side by side
    let column = 0;
    for (; column + 1 < width; column += 2, at += 2) {
      a += rows[at] * vector[column];
      b += rows[at + 1] * vector[column + 1];
    }
    if (column < width) a += rows[at++] * vector[column];
    result[row] = a + b;
  }
  return result;
}

/**
 * One row, a view.
 *
 * @param {Float32Array} rows
 * @param {number} width
 * @param {number} index
 */
export function rowOf(rows, width, index) {
  return rows.subarray(index * width, (index + 1) * width);
}

/**
 * The index of the largest value, the first of equals; -1 of none.
 *
 * @param {ArrayLike<number>} values
 */
export function argmax(values) {
  let best = -1;
  for (let index = 0; index < values.length; index++) {
    if (best < 0 || values[index] > values[best]) best = index;
  }
  return best;
}

/**
 * The range of values, NaN left out; [0, 0] of none.
 *
 * @param {Iterable<number>} values
 * @returns {[number, number]}
 */
export function rangeOf(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 0];
}
