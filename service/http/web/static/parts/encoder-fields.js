/** The fields that say which tokens are asked for: encoder, layer, resolution. */

import { modelOf } from "../api/models.js";
import { resolutionOf, sizeName, sizesOf } from "../numbers/geometry.js";
import { button, choice, el, labelled, put } from "./dom.js";
import { Slider } from "./slider.js";

/**
 * @import {Asked} from "../api/embed.js"
 * @import {Model} from "../api/models.js"
 */

/** Time between two layers of a slider that plays. */
const STEP_MS = 600;

export class EncoderFields {
  /**
   * @param {Model[]} models that are served
   * @param {Asked} asked
   * @param {() => Promise<boolean>} onchange other tokens are asked for; resolves to whether they are shown
   * @param {Object} [options]
   * @param {(model: Model) => boolean} [options.fits] whether an encoder is offered; one at least must be
   * @param {boolean} [options.hasLayer] whether there is a field for the layer
   */
  constructor(models, asked, onchange, { fits = () => true, hasLayer = true } = {}) {
    this.served = models;
    this.asked = asked;
    this.onchange = onchange;
    this.fits = fits;
    this.hasLayer = hasLayer;
    this.element = el("div", { class: "row encoder" });
    /** Of the slider that plays. @type {symbol | null} */
    this.playing = null;
    this.draw();
  }

  /** The server's encoders may be others now. @param {Model[]} models */
  refresh(models) {
    if (this.served === models) return;
    this.served = models;
    this.asked = askedOfLink(models.filter(this.fits), askedInLink(this.asked));
    this.draw();
  }

  draw() {
    const encoder = encoderChoice(this.served.filter(this.fits), this.asked.model, (model) => {
      this.asked = { model, layer: null, resolution: null };
      this.stop();
      this.draw();
      this.onchange();
    });
    const layers = this.hasLayer ? [this.#layers()] : [];
    put(this.element, labelled("Encoder", encoder), ...layers, this.#sizes());
  }

  /** End a slider that plays. */
  stop() {
    this.playing = null;
  }

  #layers() {
    const { model, layer } = this.asked;
    const show = (/** @type {number} */ value) => {
      this.asked = { ...this.asked, layer: value === model.layers ? null : value };
      return this.onchange();
    };
    const slider = new Slider("Layer", {
      say: (value) => (value === model.layers ? "final tokens" : `${value} of 0–${model.layers - 1}`),
      oninput: (value) => {
        this.stop();
        show(value);
      },
    });
    slider.show(layer ?? model.layers, model.layers);
    const play = async () => {
      const playing = (this.playing = Symbol("play"));
      for (let layer = (slider.value + 1) % (model.layers + 1); layer <= model.layers; layer++) {
        slider.show(layer, model.layers);
        const [isShown] = await Promise.all([show(layer), new Promise((resolve) => setTimeout(resolve, STEP_MS))]);
        if (this.playing !== playing) return;
        if (!isShown || !slider.element.isConnected) break;
      }
      this.stop();
    };
    const toggle = button(
      "▶",
      async () => {
        toggle.textContent = "⏸";
        await (this.playing === null ? play() : this.stop());
        if (this.playing === null) toggle.textContent = "▶";
      },
      { class: "quiet", "aria-label": "Play through the layers", title: "Play through the layers" },
    );
    return el("div", { class: "row tight" }, slider.element, toggle);
  }

  #sizes() {
    const { model, resolution } = this.asked;
    const sizes = sizesOf(model);
    const native = sizes.findIndex((size) => String(size) === String(model.image_size));
    const at = sizes.findIndex((size) => resolutionOf(size) === resolution);
    const slider = new Slider("Resolution", {
      say: (index) => sizeName(sizes[index], model),
      // asked for when it is let go: a large size takes long
      onchange: (index) => {
        this.asked = { ...this.asked, resolution: index === native ? null : resolutionOf(sizes[index]) };
        this.onchange();
      },
    });
    slider.show(at < 0 ? native : at, sizes.length - 1);
    return slider.element;
  }
}

/**
 * @param {Model[]} models
 * @param {Model} chosen
 * @param {(model: Model) => void} onchange
 */
export function encoderChoice(models, chosen, onchange) {
  const ids = models.map(({ id }) => id);
  return choice(ids, chosen.id, (id) => onchange(modelOf(models, id)));
}

/**
 * In a link: "ID;layer=3;resolution=448".
 *
 * @param {Asked} asked
 */
export function askedInLink({ model, layer = null, resolution = null }) {
  return [model.id, layer === null ? "" : `layer=${layer}`, resolution === null ? "" : `resolution=${resolution}`]
    .filter(Boolean)
    .join(";");
}

/**
 * @param {Model[]} models
 * @param {string} link as askedInLink writes it; what this server does not have is the default
 * @returns {Asked}
 */
export function askedOfLink(models, link) {
  // from the end: an id may have a semicolon
  const [, id, layer, resolution] = /^(.*?)(?:;layer=(\d+))?(?:;resolution=([^;]*))?$/s.exec(link) ?? ["", link];
  const model = modelOf(models, id);
  return {
    model,
    layer: layer !== undefined && Number(layer) < model.layers ? Number(layer) : null,
    resolution: sizesOf(model).some((size) => resolutionOf(size) === resolution) ? resolution : null,
  };
}
