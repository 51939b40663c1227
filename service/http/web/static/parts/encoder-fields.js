/** The fields that say which tokens are asked for: encoder, layer, resolution. */

import { modelOf } from "../api/models.js";
import { resolutionOf, sizesOf } from "../numbers/geometry.js";
import { button, choice, el, labelled, put } from "./dom.js";

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
    this.isPlaying = false;
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
    const { model } = this.asked;
    const models = this.served.filter(this.fits);
    const encoder = choice(
      models.map(({ id }) => id),
      model.id,
      (id) => {
        this.asked = { model: modelOf(models, id), layer: null, resolution: null };
        this.stop();
        this.draw();
        this.onchange();
      },
    );
    const layers = this.hasLayer ? [this.#layers()] : [];
    put(this.element, labelled("Encoder", encoder), ...layers, this.#sizes());
  }

  /** End a slider that plays. */
  stop() {
    this.isPlaying = false;
  }

  #layers() {
    const { model, layer } = this.asked;
    const slider = el("input", { type: "range", min: 0, max: model.layers, step: 1, value: layer ?? model.layers });
    const said = el("span", { class: "value" }, layerName(model, layer ?? null));
    const show = async () => {
      const value = Number(slider.value);
      this.asked = { ...this.asked, layer: value === model.layers ? null : value };
      said.textContent = layerName(model, this.asked.layer ?? null);
      slider.setAttribute("aria-valuetext", said.textContent);
      return this.onchange();
    };
    slider.setAttribute("aria-valuetext", said.textContent ?? "");
    slider.addEventListener("input", () => {
      this.stop();
      show();
    });
    const play = button(
      "▶",
      async () => {
        this.isPlaying = !this.isPlaying;
        play.textContent = this.isPlaying ? "⏸" : "▶";
        const now = Number(slider.value);
        for (let layer = now === model.layers ? 0 : now + 1; layer <= model.layers && this.isPlaying; layer++) {
          slider.value = String(layer);
          const [isShown] = await Promise.all([show(), new Promise((resolve) => setTimeout(resolve, STEP_MS))]);
          if (!isShown || !slider.isConnected) break;
        }
        this.stop();
        play.textContent = "▶";
      },
      { class: "quiet", "aria-label": "Play through the layers", title: "Play through the layers" },
    );
    const field = labelled("Layer", slider, said);
    return el("div", { class: "row tight" }, field, play);
  }

  #sizes() {
    const { model, resolution } = this.asked;
    const sizes = sizesOf(model);
    const native = sizes.findIndex((size) => String(size) === String(model.image_size));
    const at = sizes.findIndex((size) => resolutionOf(size) === resolution);
    const slider = el("input", {
      type: "range",
      min: 0,
      max: sizes.length - 1,
      value: at < 0 ? native : at,
      disabled: sizes.length === 1,
    });
    const said = el("span", { class: "value" }, sizeName(sizes[at < 0 ? native : at], at < 0 || at === native));
    slider.setAttribute("aria-valuetext", said.textContent ?? "");
    const follow = () => {
      const index = Number(slider.value);
      said.textContent = sizeName(sizes[index], index === native);
      slider.setAttribute("aria-valuetext", said.textContent);
      return index;
    };
    slider.addEventListener("input", follow);
    // asked for when it is let go: a large size takes long
    slider.addEventListener("change", () => {
      const index = follow();
      this.asked = { ...this.asked, resolution: index === native ? null : resolutionOf(sizes[index]) };
      this.onchange();
    });
    return labelled("Resolution", slider, said);
  }
}

/** @param {Model} model @param {number | null} layer */
function layerName(model, layer) {
  return layer === null ? "final tokens" : `${layer} of 0–${model.layers - 1}`;
}

/** @param {[number, number]} size @param {boolean} isNative */
function sizeName(size, isNative) {
  return `${resolutionOf(size)}${isNative ? " (native)" : ""}`;
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
