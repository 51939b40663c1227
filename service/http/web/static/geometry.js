/** Which part of a picture an encoder sees, from `preprocessing` of /models; the rule is encoders/images/preprocess.py's. */

/**
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

/** @param {Size} picture @param {Size} size @returns {Box} */
function centred(picture, size) {
  return { left: (picture.width - size.width) / 2, top: (picture.height - size.height) / 2, ...size };
}

/**
 * The sizes that an encoder runs at, in its native proportions, from small to large. At most `most`, the native one
 * among them.
 *
 * @param {{image_size: [number, number], resolutions: {multiple: [number, number], minimum: [number, number], maximum: [number, number], only: [number, number] | null}}} model
 * @param {number} [most]
 * @returns {Array<[number, number]>} [height, width]
 */
export function sizesOf(model, most = 64) {
  const { image_size: native, resolutions } = model;
  if (resolutions.only !== null) return [resolutions.only];
  const [multipleY, multipleX] = resolutions.multiple;
  /** @type {Map<string, [number, number]>} */
  const sizes = new Map([[String(native), native]]);
  for (let height = multipleY; height <= resolutions.maximum[0]; height += multipleY) {
    const width = Math.round((height * native[1]) / native[0] / multipleX) * multipleX;
    /** @type {[number, number]} */
    const size = [height, width];
    const fits = size.every((side, axis) => side >= resolutions.minimum[axis] && side <= resolutions.maximum[axis]);
    if (fits) sizes.set(String(size), size);
  }
  const all = [...sizes.values()].sort((a, b) => a[0] * a[1] - b[0] * b[1]);
  const step = Math.ceil(all.length / most);
  return all.filter((size, index) => index % step === 0 || String(size) === String(native));
}

/** As the API's `resolution` has it. @param {[number, number]} size [height, width] */
export function resolutionOf([height, width]) {
  return height === width ? String(height) : `${height}x${width}`;
}
