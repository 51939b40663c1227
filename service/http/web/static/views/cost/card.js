/** A graphics card, and the language model that shares it with the encoder. */

import { GIB, short } from "../../numbers/units.js";

/** GiB of the cards that are sold. */
export const CARDS = [8, 12, 16, 24, 40, 48, 80, 141];
/** Of the parameters of language models. */
export const BILLIONS = [0.5, 1.5, 3, 7, 8, 13, 32, 70];
/** Of a weight. */
export const BITS = [16, 8, 4];
export const MOST_CACHE_GIB = 1000;

export class Card {
  /** @param {URLSearchParams} [parameters] of a link; what it does not say is the default */
  constructor(parameters = new URLSearchParams()) {
    /** 0: the card is this server's, and has its budget. */
    this.gib = oneOf([0, ...CARDS], parameters.get("card"), 24);
    /** Parameters of the language model; 0: there is none. */
    this.billions = oneOf([0, ...BILLIONS], parameters.get("billions"), 7);
    this.bits = oneOf(BITS, parameters.get("bits"), 16);
    const cache = Number(parameters.get("cache") ?? 1);
    /** Room for the language model's KV cache. */
    this.cacheGiB = cache >= 0 && cache <= MOST_CACHE_GIB ? cache : 1;
  }

  /** As a link has it. */
  parameters() {
    const { gib, billions, bits, cacheGiB } = this;
    return { card: String(gib), billions: String(billions), bits: String(bits), cache: String(cacheGiB) };
  }

  get isServers() {
    return this.gib === 0;
  }

  /** Bytes that the language model takes. */
  get besideBytes() {
    return this.billions === 0 ? 0 : this.#weightBytes + this.cacheGiB * GIB;
  }

  get #weightBytes() {
    return (this.billions * 1e9 * this.bits) / 8;
  }

  /** "a 7 B model in 16 bits (14.0 GB) and its KV cache (1 GiB)" */
  get besideName() {
    const { billions, bits, cacheGiB } = this;
    const cache = cacheGiB > 0 ? ` and its KV cache (${short(cacheGiB)} GiB)` : "";
    return (
      `${billions === 8 ? "an" : "a"} ${billions} B model in ${bits} bits ` +
      `(${(this.#weightBytes / 1e9).toFixed(1)} GB)${cache}`
    );
  }
}

/** @param {number[]} options @param {string | null} value @param {number} otherwise */
function oneOf(options, value, otherwise) {
  return value !== null && options.includes(Number(value)) ? Number(value) : otherwise;
}
