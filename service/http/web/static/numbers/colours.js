/** Numbers -> colours. */

/** Inferno-like ramp from Matplotlib's `inferno` (CC0), nine of its colours; between them it is mixed. */
const RAMP = [
  [0, 0, 4],
  [33, 12, 74],
  [87, 16, 110],
  [138, 34, 106],
  [188, 55, 84],
  [227, 89, 51],
  [249, 140, 10],
  [249, 201, 50],
  [252, 255, 164],
];

/** The ramp's 256 colours, RGBA as a little-endian word. */
const WORDS = Uint32Array.from({ length: 256 }, (_, step) => {
  const place = (step / 255) * (RAMP.length - 1);
  const [below, above] = [RAMP[Math.floor(place)], RAMP[Math.ceil(place)]];
  const [red, green, blue] = below.map((value, channel) =>
    Math.round(value + (above[channel] - value) * (place - Math.floor(place))),
  );
  return red | (green << 8) | (blue << 16) | (255 << 24);
});

/** The colour of a step, for a style. @param {number} share 0..1 */
export function rampColour(share) {
  const word = WORDS[Math.round(Math.min(Math.max(share, 0), 1) * 255)];
  return `rgb(${word & 255} ${(word >> 8) & 255} ${(word >> 16) & 255})`;
}

/**
 * RGBA of each value, from the ramp's first colour at `low` to its last at `high`.
 *
 * @param {ArrayLike<number>} values
 * @param {[number, number]} range
 * @returns {Uint8ClampedArray<ArrayBuffer>}
 */
export function heatColours(values, [low, high]) {
  const words = new Uint32Array(values.length);
  const scale = high > low ? 255 / (high - low) : 0;
  for (let index = 0; index < values.length; index++) {
    const step = Math.round((values[index] - low) * scale);
    words[index] = WORDS[step < 0 ? 0 : step > 255 ? 255 : step] ?? 0;
  }
  return new Uint8ClampedArray(words.buffer);
}

/** Shares of the values that become a channel's 0 and 255: a few extreme tokens must not take all the contrast. */
const ENDS = [0.01, 0.99];

/**
 * RGBA of rows of three numbers: each column from its 1st percentile (0) to its 99th (255).
 *
 * @param {Float32Array} rows [n, 3]
 * @returns {Uint8ClampedArray<ArrayBuffer>} [n, 4]
 */
export function componentColours(rows) {
  const count = rows.length / 3;
  const colours = new Uint8ClampedArray(count * 4).fill(255);
  for (let channel = 0; channel < 3; channel++) {
    const column = Float32Array.from({ length: count }, (_, row) => rows[row * 3 + channel]);
    const [low, high] = ENDS.map((share) => percentile(column, share));
    for (let row = 0; row < count; row++) {
      colours[row * 4 + channel] = high > low ? (255 * (column[row] - low)) / (high - low) : 128;
    }
  }
  return colours;
}

/** Linear between the two nearest, as NumPy's default. @param {Float32Array} values @param {number} share */
function percentile(values, share) {
  const sorted = values.slice().sort();
  const place = share * (sorted.length - 1);
  const below = sorted[Math.floor(place)];
  return below + (sorted[Math.ceil(place)] - below) * (place - Math.floor(place));
}
