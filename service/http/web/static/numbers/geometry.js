/** Which part of a picture an encoder sees, from `preprocessing` of /models; the rule is encoders/images/preprocess.py's. */

/**
 * @import {Pair} from "../api/models.js"
 *
 * @typedef {{width: number, height: number}} Size
 * @typedef {Size & {left: number, top: number}} Box in the picture's pixels; beyond its edges lies the fill
 */

/**
 * @param {Size} picture upright
 * @param {{resize: string, crop_pct: number}} preprocessing
 * @param {Size} target what the encoder runs at
 * @returns {Box} the part that the patch grid covers, whole
 */
export function seenBox(picture, preprocessing, target) {
  const { resize, crop_pct: share } = preprocessing;
  if (resize === "pad" || resize === "longest") {
    const ratio = Math.max(picture.height / target.height, picture.width / target.width);
    return centred(picture, { width: target.width * ratio, height: target.height * ratio });
  }
  const whole = { width: Math.floor(target.width / share), height: Math.floor(target.height / share) };
  let scale = { x: picture.width / whole.width, y: picture.height / whole.height };
  if (resize === "edge" || (resize === "shortest" && target.width === target.height)) {
    const ratio = Math.min(picture.width, picture.height) / Math.min(whole.width, whole.height);
    scale = { x: ratio, y: ratio };
  } else if (resize === "shortest") {
    const ratio = Math.min(scale.x, scale.y);
    scale = { x: ratio, y: ratio };
  }
  return centred(picture, { width: target.width * scale.x, height: target.height * scale.y });
}

/**
 * The part of a picture that an encoder sees. A picture that this browser cannot measure is taken for one of the
 * encoder's own size.
 *
 * @param {Size} picture upright; 0 x 0 if it cannot be measured
 * @param {{model: {image_size: [number, number], preprocessing: {resize: string, crop_pct: number}}, resolution?: string | null}} asked
 * @returns {Box}
 */
export function boxSeen(picture, { model, resolution }) {
  const [height, width] = resolution ? sizeOf(resolution) : model.image_size;
  return seenBox(picture.width > 0 ? picture : { width, height }, model.preprocessing, { width, height });
}

/** @param {Size} picture @param {Size} size @returns {Box} */
function centred(picture, size) {
  return { left: (picture.width - size.width) / 2, top: (picture.height - size.height) / 2, ...size };
}

/**
 * The sizes that an encoder runs at, in its native proportions and whole patches, from small to large. About `most`, the
 * native and the largest among them.
 *
 * @param {{image_size: Pair, patch_size: Pair, resolutions: {multiple: Pair, minimum: Pair, maximum: Pair, only: Pair | null}}} model
 * @param {number} [most]
 * @param {[number, number]} [range] the smallest and the largest height, in native ones
 * @returns {Pair[]} [height, width]
 */
export function sizesOf(model, most = 64, [least, largest] = [0, Infinity]) {
  const { image_size: native, resolutions } = model;
  if (resolutions.only !== null) return [resolutions.only];
  const [stepY, stepX] = resolutions.multiple.map((multiple, axis) => lcm(multiple, model.patch_size[axis]));
  /** @type {Map<string, Pair>} */
  const sizes = new Map([[String(native), native]]);
  for (let height = stepY; height <= Math.min(resolutions.maximum[0], largest * native[0]); height += stepY) {
    const width = Math.round((height * native[1]) / native[0] / stepX) * stepX;
    /** @type {Pair} */
    const size = [height, width];
    const fits = size.every((side, axis) => side >= resolutions.minimum[axis] && side <= resolutions.maximum[axis]);
    if (fits && height >= least * native[0]) sizes.set(String(size), size);
  }
  const all = [...sizes.values()].sort((a, b) => a[0] * a[1] - b[0] * b[1]);
  const step = Math.ceil(all.length / most);
  const isKept = (/** @type {number} */ index) => index % step === 0 || index === all.length - 1;
  return all.filter((size, index) => isKept(index) || String(size) === String(native));
}

/** The least common multiple. @param {number} a @param {number} b */
function lcm(a, b) {
  let [divisor, rest] = [a, b];
  while (rest > 0) [divisor, rest] = [rest, divisor % rest];
  return (a / divisor) * b;
}

/** As the API's `resolution` has it. @param {[number, number]} size [height, width] */
export function resolutionOf([height, width]) {
  return height === width ? String(height) : `${height}x${width}`;
}

/** A size for people: "336 × 336", "384 high × 128 wide". @param {[number, number]} size [height, width] */
export function sidesOf([height, width]) {
  return height === width ? `${height} × ${width}` : `${height} high × ${width} wide`;
}

/** The same, "336 × 336 (native)" for the encoder's own. @param {[number, number]} size @param {{image_size: Pair}} model */
export function sizeName(size, { image_size: native }) {
  return `${sidesOf(size)}${String(size) === String(native) ? " (native)" : ""}`;
}

/** [height, width] of the API's `resolution`. @param {string} resolution @returns {[number, number]} */
function sizeOf(resolution) {
  const [height, width = height] = resolution.split("x").map(Number);
  return [height, width];
}
