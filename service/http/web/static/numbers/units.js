/** Numbers as people read them. Memory is in GiB, 2^30 bytes, as cards are sold; files and downloads are in MB. */

export const GIB = 2 ** 30;

/** @param {number} bytes of memory: "13 GiB", "3.43 MiB" */
export function inGiB(bytes) {
  return scaled(bytes, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
}

/** @param {number} bytes of a file: "605 MB" */
export function inMB(bytes) {
  return scaled(bytes, 1000, ["bytes", "kB", "MB", "GB", "TB"]);
}

/** @param {number} flops "382 GFLOP" */
export function inFlops(flops) {
  return scaled(flops, 1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"]);
}

/** In the largest unit of which there is one. @param {number} value @param {number} step @param {string[]} units */
function scaled(value, step, units) {
  let power = 0;
  while (value >= step && power < units.length - 1) {
    value /= step;
    power++;
  }
  return `${short(value)} ${units[power]}`;
}

/** @param {number} seconds "1.2 s", "3.4 ms", "80 µs" */
export function inSeconds(seconds) {
  if (seconds === 0) return "0 s";
  if (seconds >= 1) return `${short(seconds)} s`;
  return seconds >= 1e-3 ? `${short(seconds * 1e3)} ms` : `${short(seconds * 1e6)} µs`;
}

/** @param {number} count whole: "63,271" */
export function grouped(count) {
  return count.toLocaleString("en");
}

/** Three digits, and no zeros after the point: "24", "13.1", "0.512". @param {number} value */
export function short(value) {
  if (value === 0) return "0";
  const digits = Math.max(0, Math.min(20, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return grouped(Number(value.toFixed(digits)));
}

/** "1 picture", "1,200 pictures" @param {number} count whole @param {string} noun */
export function counted(count, noun) {
  return `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** Three digits: the tokens are of 16 bits. @param {number} cosine */
export function asCosine(cosine) {
  return cosine.toFixed(3);
}
