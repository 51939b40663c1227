/** Numbers as people read them. Memory is in GiB, 2^30 bytes, as cards are sold; files and downloads are in MB. */

export const GIB = 2 ** 30;

/** @param {number} bytes of memory: "13.0 GiB", "24 GiB", "3.43 MiB" */
export function inGiB(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1024 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  return `${short(bytes / 1024 ** power)} ${units[power]}`;
}

/** @param {number} bytes of a file: "605 MB", "1.23 MB" */
export function inMB(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = bytes < 1000 ? 0 : Math.min(Math.floor(Math.log10(bytes) / 3), units.length - 1);
  return `${short(bytes / 1000 ** power)} ${units[power]}`;
}

/** @param {number} flops "382 GFLOP" */
export function inFlops(flops) {
  const units = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"];
  const power = flops < 1000 ? 0 : Math.min(Math.floor(Math.log10(flops) / 3), units.length - 1);
  return `${short(flops / 1000 ** power)} ${units[power]}`;
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
