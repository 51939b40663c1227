/** Safetensors bytes -> named arrays of float32. Format: https://huggingface.co/docs/safetensors */

/**
 * @typedef {{shape: number[], dtype: string, values: Float32Array}} Tensor dtype: as it was on the wire, "F16"
 * @typedef {{tensors: Record<string, Tensor>, metadata: Record<string, string>}} Tensors
 */

/**
 * @param {ArrayBuffer} buffer
 * @returns {Tensors} Throws Error for bytes that are no safetensors file.
 */
export function parseSafetensors(buffer) {
  const headerBytes = buffer.byteLength < 8 ? NaN : Number(new DataView(buffer).getBigUint64(0, true));
  if (!(8 + headerBytes <= buffer.byteLength)) throw new Error("the answer is no safetensors file, or cut short.");
  const { __metadata__: metadata = {}, ...entries } = JSON.parse(
    new TextDecoder().decode(new Uint8Array(buffer, 8, headerBytes)),
  );
  /** @type {Record<string, Tensor>} */
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(entries)) {
    if (!(8 + headerBytes + offsets[1] <= buffer.byteLength)) throw new Error("the answer is cut short.");
    const bytes = buffer.slice(8 + headerBytes + offsets[0], 8 + headerBytes + offsets[1]); // aligned, as the original may not be
    tensors[name] = { shape, dtype, values: toFloat32(bytes, dtype) };
  }
  return { tensors, metadata };
}

/**
 * @param {ArrayBuffer} bytes little-endian
 * @param {string} dtype
 */
function toFloat32(bytes, dtype) {
  if (dtype === "F32") return new Float32Array(bytes);
  if (dtype === "F16") return halfToFloat(new Uint16Array(bytes));
  if (dtype === "BF16") {
    const words = Uint32Array.from(new Uint16Array(bytes), (word) => word << 16);
    return new Float32Array(words.buffer);
  }
  throw new Error(`Numbers of type ${dtype} are not read by this page.`);
}

/** Every float16 as float32: 65,536 are looked up faster than worked out. @type {Float32Array | null} */
let halves = null;

/** @param {Uint16Array} words IEEE 754 binary16 @returns {Float32Array} */
function halfToFloat(words) {
  halves ??= Float32Array.from({ length: 65536 }, (_, word) => half(word));
  const table = halves;
  const floats = new Float32Array(words.length);
  for (let index = 0; index < words.length; index++) floats[index] = table[words[index]];
  return floats;
}

/** @param {number} word */
function half(word) {
  const sign = word & 0x8000 ? -1 : 1;
  const exponent = (word >> 10) & 31;
  const fraction = word & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
