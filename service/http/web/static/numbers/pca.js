/**
 * The first principal components of rows of numbers, by subspace iteration with Rayleigh-Ritz (Halko, Martinsson and
 * Tropp 2011, section 4.5): exact to float32's rounding for the components whose variances differ.
 */

const EXTRA = 9;
/** Vectors carried along beside those asked for. They speed the others up: the error falls by (v_last / v_k) a round. */
const ROUNDS = 100;
const ENOUGH = 1e-10;
/** Of the largest variance: what a variance may still grow by in a round. */

/**
 * The rows' coordinates on the first components, after their mean is taken away. The sign of a component is chosen so
 * that its largest number is positive, as scikit-learn's svd_flip does with the rows of V.
 *
 * @param {Float32Array} rows
 * @param {number} width
 * @param {number} [count] components
 * @returns {Float32Array} [rows, count]; components that the rows do not have are zeros
 */
export function principalComponents(rows, width, count = 3) {
  const height = rows.length / width;
  const centred = withoutMean(rows, width);
  const block = Math.min(count + EXTRA, width, height);
  let found = rotated(centred, orthonormal(start(width, block)));
  for (let round = 0; round < ROUNDS; round++) {
    const before = found.variances;
    found = rotated(centred, orthonormal(weighed(centred, found.scores, width)));
    const [first] = found.variances;
    const change = found.variances.slice(0, count).reduce((most, value, k) => Math.max(most, value - before[k]), 0);
    if (change <= ENOUGH * first) break; // a round never makes them smaller
  }
  const result = new Float32Array(height * count);
  for (let k = 0; k < Math.min(count, block); k++) {
    const sign = signOf(found.basis[k]);
    for (let row = 0; row < height; row++) result[row * count + k] = sign * found.scores[k][row];
  }
  return result;
}

/** @param {Float32Array} rows @param {number} width */
function withoutMean(rows, width) {
  const height = rows.length / width;
  const mean = new Float64Array(width);
  for (let at = 0; at < rows.length; at++) mean[at % width] += rows[at] / height;
  return rows.map((value, at) => value - mean[at % width]);
}

/** Vectors to begin with: the same each time, so that the same picture has the same colours. @param {number} width @param {number} block */
function start(width, block) {
  let seed = 1;
  return Array.from({ length: block }, () =>
    Float64Array.from({ length: width }, () => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
      return seed / 2 ** 32 - 0.5;
    }),
  );
}

/** Gram-Schmidt, twice, which is enough (Giraud et al. 2005). @param {Float64Array[]} vectors are overwritten */
function orthonormal(vectors) {
  vectors.forEach((vector, index) => {
    const before = Math.sqrt(dot(vector, vector));
    for (let time = 0; time < 2; time++) {
      for (const other of vectors.slice(0, index)) add(vector, other, -dot(vector, other));
    }
    const length = Math.sqrt(dot(vector, vector));
    const scale = length > 1e-12 * before ? 1 / length : 0; // a direction that is not there becomes zeros
    vector.forEach((value, at) => (vector[at] = value * scale));
  });
  return vectors;
}

/** @param {Float64Array} sum is added to @param {Float64Array} vector @param {number} weight */
function add(sum, vector, weight) {
  for (let at = 0; at < sum.length; at++) sum[at] += weight * vector[at];
}

/** @param {Float64Array} a @param {Float64Array} b */
function dot(a, b) {
  let sum = 0;
  for (let at = 0; at < a.length; at++) sum += a[at] * b[at];
  return sum;
}

/** Each row's product with each vector. @param {Float32Array} rows @param {Float64Array[]} basis @param {number} width */
function timesBasis(rows, basis, width) {
  const height = rows.length / width;
  return basis.map((vector) => {
    const scores = new Float64Array(height);
    for (let row = 0, at = 0; row < height; row++) {
      let sum = 0;
      for (let column = 0; column < width; column++) sum += rows[at++] * vector[column];
      scores[row] = sum;
    }
    return scores;
  });
}

/** The rows' sums, weighed by each of the scores. @param {Float32Array} rows @param {Float64Array[]} scores @param {number} width */
function weighed(rows, scores, width) {
  return scores.map((weights) => {
    const sum = new Float64Array(width);
    for (let row = 0, at = 0; row < weights.length; row++) {
      const weight = weights[row];
      for (let column = 0; column < width; column++) sum[column] += weight * rows[at++];
    }
    return sum;
  });
}

/**
 * The directions of most variance within the basis' span, with the rows' scores on them.
 *
 * @param {Float32Array} rows
 * @param {Float64Array[]} basis orthonormal
 */
function rotated(rows, basis) {
  const scores = timesBasis(rows, basis, basis[0].length);
  const { values, vectors } = eigen(scores.map((a) => Float64Array.from(scores, (b) => dot(a, b))));
  const turn = (/** @type {Float64Array[]} */ each) =>
    vectors.map((weights) => {
      const sum = new Float64Array(each[0].length);
      each.forEach((vector, k) => add(sum, vector, weights[k]));
      return sum;
    });
  return { basis: turn(basis), scores: turn(scores), variances: values };
}

/**
 * Of a small symmetric matrix, by Jacobi's rotations; largest first.
 *
 * @param {Float64Array[]} matrix is overwritten
 * @returns {{values: Float64Array, vectors: Float64Array[]}}
 */
function eigen(matrix) {
  const size = matrix.length;
  const vectors = matrix.map((_, row) => Float64Array.from({ length: size }, (_, column) => Number(row === column)));
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0;
    for (let p = 0; p < size; p++) for (let q = p + 1; q < size; q++) off += matrix[p][q] ** 2;
    if (off < 1e-22 * matrix.reduce((sum, row, k) => sum + row[k] ** 2, 0)) break;
    for (let p = 0; p < size; p++) {
      for (let q = p + 1; q < size; q++) {
        if (matrix[p][q] === 0) continue;
        const theta = (matrix[q][q] - matrix[p][p]) / (2 * matrix[p][q]);
        const t = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1);
        const s = t * c;
        for (let k = 0; k < size; k++) {
          const [a, b] = [matrix[k][p], matrix[k][q]];
          matrix[k][p] = c * a - s * b;
          matrix[k][q] = s * a + c * b;
        }
        for (let k = 0; k < size; k++) {
          const [a, b] = [matrix[p][k], matrix[q][k]];
          matrix[p][k] = c * a - s * b;
          matrix[q][k] = s * a + c * b;
          const [u, v] = [vectors[p][k], vectors[q][k]];
          vectors[p][k] = c * u - s * v;
          vectors[q][k] = s * u + c * v;
        }
      }
    }
  }
  const order = Array.from(matrix.keys()).sort((a, b) => matrix[b][b] - matrix[a][a]);
  return {
    values: Float64Array.from(order, (k) => matrix[k][k]),
    vectors: order.map((k) => vectors[k]),
  };
}

/** @param {Float64Array} vector */
function signOf(vector) {
  let largest = 0;
  for (const value of vector) if (Math.abs(value) > Math.abs(largest)) largest = value;
  return largest < 0 ? -1 : 1;
}
