/** A slider over whole numbers from 0, with its value in words. */

import { el, labelled } from "./dom.js";

export class Slider {
  /**
   * @param {string} label
   * @param {Object} options
   * @param {(value: number) => string} options.say the words for a value
   * @param {(value: number) => void} [options.oninput] the user moves it
   * @param {(value: number) => void} [options.onchange] the user let it go
   */
  constructor(label, { say, oninput = () => {}, onchange = () => {} }) {
    this.say = say;
    this.words = el("span", { class: "value" });
    this.input = el("input", {
      type: "range",
      oninput: () => {
        this.#tell();
        oninput(this.value);
      },
      onchange: () => onchange(this.value),
    });
    this.element = labelled(label, this.input, this.words);
  }

  get value() {
    return Number(this.input.value);
  }

  /** @param {number} value @param {number} max */
  show(value, max) {
    this.input.max = String(max);
    this.input.value = String(value);
    this.input.disabled = max === 0;
    this.#tell();
  }

  #tell() {
    const words = this.say(this.value);
    this.words.textContent = words;
    this.input.setAttribute("aria-valuetext", words);
  }
}
