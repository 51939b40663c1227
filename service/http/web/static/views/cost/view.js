/**
 * Cost: what resolution and batch cost an encoder, in tokens, FLOPs and predicted memory; and whether it fits on a card
 * beside a language model.
 */

import { LARGEST_BATCH, forecastCall, forecastOf, largestBatch } from "../../api/forecast.js";
import { modelOf } from "../../api/models.js";
import { resolutionOf, seenBox, sizesOf } from "../../numbers/geometry.js";
import { GIB, grouped, inFlops, inGiB, short } from "../../numbers/units.js";
import { button, choice, el, labelled, put, swatch } from "../../parts/dom.js";
import { Plot, lineColour } from "../../parts/plot.js";
import { TokenMap } from "../../parts/token-map.js";
import { View } from "../view.js";

/**
 * @import {Forecast, Row} from "../../api/forecast.js"
 * @import {Model, Pair} from "../../api/models.js"
 * @import {Picture} from "../../pictures/picture.js"
 * @import {Page} from "../view.js"
 *
 * @typedef {Object} Beside a language model on the same card
 * @property {number} billions parameters; 0: there is none
 * @property {number} bits a weight
 * @property {number} cacheGiB room for its KV cache
 */

const MOST_SIZES = 12;
/** The smallest and the largest size that are shown, in native ones. */
const RANGE = /** @type {[number, number]} */ ([0.5, 4]);
const BATCHES = [1, 8, 32];
/** GiB of the cards that are sold. */
const CARDS = [8, 12, 16, 24, 40, 48, 80, 141];
const BILLIONS = [0.5, 1.5, 3, 7, 8, 13, 32, 70];
const BITS = [16, 8, 4];
const PARTS = /** @type {const} */ ([
  { key: "weights_bytes", name: "weights", colour: "--plot-1" },
  { key: "activation_bytes", name: "activations", colour: "--plot-2" },
  { key: "io_bytes", name: "in and out", colour: "--plot-3" },
  { key: "overhead_bytes", name: "overhead", colour: "--plot-4" },
]);

export class CostView extends View {
  static key = "cost";
  static title = "Cost";

  /** @param {Page} page */
  constructor(page) {
    super(page);
    this.model = page.models[0];
    /** The batches that are drawn, smallest first. */
    this.batches = BATCHES;
    /** As the API has it. */
    this.resolution = "";
    /** GiB of the card; 0: this server's budget. */
    this.cardGiB = 24;
    /** @type {Beside} */
    this.beside = { billions: 7, bits: 16, cacheGiB: 1 };
    /** @type {{forecast: Forecast, of: string, models: Model[]} | null} */
    this.known = null;
    /** The size under the pointer, in place of the marked one. @type {number | null} */
    this.pointed = null;
    this.fields = el("div", { class: "row controls" });
    this.slider = el("div", { class: "size" });
    this.verdict = el("p", { class: "verdict", role: "status" });
    this.about = el("p", { class: "note" });
    this.numbers = el("div", { class: "panel measures" });
    this.map = new TokenMap({ onpoint: (index) => this.map.mark("cursor", index) });
    const options = {
      formatX: (/** @type {number} */ side) => String(side),
      onpoint: (/** @type {number | null} */ index) => this.#point(index),
      onpick: (/** @type {number} */ index) => this.#mark(this.sizes()[index]),
    };
    const alike = "The table below has the same numbers.";
    this.memory = new Plot({
      ...options,
      label: `Predicted memory against resolution, a line a batch. ${alike}`,
      format: inGiB,
      base: 2,
      isLog: true,
      height: 420,
    });
    this.flops = new Plot({
      ...options,
      label: `FLOPs of an image against resolution. ${alike}`,
      format: inFlops,
      isLog: true,
    });
    this.tokens = new Plot({ ...options, label: `Tokens of an image against resolution. ${alike}`, format: short });
    this.legend = el("div", { class: "keys" });
    this.table = el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "All numbers" });
    this.place = el(
      "div",
      { class: "cost" },
      figure("Memory (logarithmic)", this.memory, this.legend),
      this.numbers,
      figure("FLOPs of an image (logarithmic)", this.flops),
      figure("Tokens of an image", this.tokens),
      el("section", { class: "panel", "aria-label": "The picture at this resolution" }, this.map.element),
      el(
        "section",
        { class: "panel measures", "aria-label": "Table" },
        el(
          "div",
          { class: "row" },
          el("h3", {}, "All sizes"),
          button("Copy table", () => this.#copyTable()),
        ),
        this.table,
      ),
    );
    this.element.append(this.fields, this.verdict, this.about, this.slider, this.place);
  }

  /** @param {URLSearchParams} parameters */
  restore(parameters) {
    this.model = modelOf(this.page.models, parameters.get("model"));
    const batches = (parameters.get("batches") ?? "").split(",").map(Number).filter(isBatch);
    const own = batches.find((batch) => !BATCHES.includes(batch));
    const chosen = sorted(batches.filter((batch) => BATCHES.includes(batch) || batch === own));
    this.batches = chosen.length > 0 ? chosen : BATCHES;
    this.resolution = parameters.get("resolution") ?? "";
    this.cardGiB = oneOf([0, ...CARDS], parameters.get("card"), 24);
    const cache = Number(parameters.get("cache") ?? 1);
    this.beside = {
      billions: oneOf([0, ...BILLIONS], parameters.get("billions"), 7),
      bits: oneOf(BITS, parameters.get("bits"), 16),
      cacheGiB: cache >= 0 && cache <= 1000 ? cache : 1,
    };
    this.#drawFields();
  }

  parameters() {
    const { billions, bits, cacheGiB } = this.beside;
    return new URLSearchParams({
      model: this.model.id,
      resolution: resolutionOf(this.#marked()),
      batches: this.batches.join(","),
      card: String(this.cardGiB),
      billions: String(billions),
      bits: String(bits),
      cache: String(cacheGiB),
    });
  }

  calls() {
    return [this.#call()];
  }

  /** The sizes that are shown. @returns {Pair[]} */
  sizes() {
    return sizesOf(this.model, MOST_SIZES, RANGE);
  }

  async update() {
    const model = modelOf(this.page.models, this.model.id);
    if (model !== this.model) {
      this.model = model;
      this.#drawFields();
    }
    this.page.changed();
    const call = this.#call();
    const of = JSON.stringify(call);
    if (this.known?.of !== of || this.known.models !== this.page.models) {
      const { models } = this.page;
      this.known = null;
      this.#draw();
      await this.page.work(
        `Predicting the memory of ${model.id} at ${this.sizes().length} sizes`,
        async ({ signal }) => {
          this.known = { forecast: await forecastOf(call, signal), of, models };
        },
      );
    }
    this.#draw();
  }

  #call() {
    return forecastCall(this.model, this.sizes(), this.batches);
  }

  /** @returns {Pair} */
  #marked() {
    return this.sizes().find((size) => resolutionOf(size) === this.resolution) ?? this.model.image_size;
  }

  /** @param {Pair} size */
  #mark(size) {
    this.resolution = resolutionOf(size);
    this.page.changed();
    this.#drawSlider();
    this.#drawMarked();
  }

  /** @param {number | null} index of the size under the pointer */
  #point(index) {
    if (this.pointed === index) return;
    this.pointed = index;
    this.#drawNumbers();
  }

  /** @param {Pair} size @returns {Row[]} of every batch that was asked about */
  #rowsAt(size) {
    return this.known?.forecast.rows.filter(({ resolution }) => String(resolution) === String(size)) ?? [];
  }

  /** Bytes of the card, or of this server's budget. */
  #total() {
    return this.cardGiB > 0 ? this.cardGiB * GIB : (this.known?.forecast.budget_bytes ?? 0);
  }

  /** Bytes that others hold. */
  #held() {
    const own = this.cardGiB > 0 ? [] : this.page.models.filter((each) => each !== this.model && isLoaded(each));
    return own.reduce((sum, { weights_bytes: bytes }) => sum + bytes, besideBytes(this.beside));
  }

  /** The largest batch beside the language model. @param {Row[]} rows of one size */
  #largest(rows) {
    const isServers = this.cardGiB === 0 && this.beside.billions === 0;
    return isServers ? rows[0].max_batch : largestBatch(rows, this.#total() - this.#held());
  }

  #drawFields() {
    const { page } = this;
    const encoder = choice(
      page.models.map(({ id }) => id),
      this.model.id,
      (id) => {
        this.model = modelOf(page.models, id);
        this.resolution = "";
        this.#drawFields();
        this.update();
      },
    );
    const redraw = () => {
      page.changed();
      this.#draw();
    };
    const cardName = (/** @type {number} */ size) => (size === 0 ? "this server's budget" : `${size} GiB`);
    const card = numberChoice([0, ...CARDS], this.cardGiB, cardName, (size) => {
      this.cardGiB = size;
      redraw();
    });
    const sizeName = (/** @type {number} */ billions) => (billions === 0 ? "none" : `${billions} B parameters`);
    const size = numberChoice([0, ...BILLIONS], this.beside.billions, sizeName, (billions) => {
      this.beside = { ...this.beside, billions };
      for (const field of [bits, cache]) field.disabled = billions === 0;
      redraw();
    });
    const bits = numberChoice(
      BITS,
      this.beside.bits,
      (count) => `${count} bits`,
      (count) => {
        this.beside = { ...this.beside, bits: count };
        redraw();
      },
    );
    const cache = el("input", {
      type: "number",
      min: 0,
      max: 1000,
      step: "any",
      value: this.beside.cacheGiB,
      onchange: () => {
        if (!cache.checkValidity() || cache.value === "") cache.value = "0";
        this.beside = { ...this.beside, cacheGiB: Number(cache.value) };
        redraw();
      },
    });
    for (const field of [bits, cache]) field.disabled = this.beside.billions === 0;
    put(
      this.fields,
      labelled("Encoder", encoder),
      this.#batchFields(),
      labelled("Card", card),
      labelled("Language model beside it", size),
      labelled("Its weights in", bits),
      labelled("Its KV cache, GiB", cache),
    );
    this.#drawSlider();
  }

  #batchFields() {
    const boxes = BATCHES.map((batch) =>
      el("input", { type: "checkbox", value: batch, checked: this.batches.includes(batch), onchange: () => change() }),
    );
    const other = this.batches.find((batch) => !BATCHES.includes(batch));
    const own = el("input", {
      type: "number",
      min: 1,
      max: LARGEST_BATCH,
      value: other ?? "",
      placeholder: "own",
      "aria-label": "Another batch",
      onchange: () => change(),
    });
    const change = () => {
      if (!own.checkValidity()) own.value = "";
      const chosen = [...boxes.filter((box) => box.checked), own].map(({ value }) => Number(value)).filter(isBatch);
      if (chosen.length === 0) boxes[0].checked = true;
      this.batches = chosen.length > 0 ? sorted(chosen) : [BATCHES[0]];
      this.update();
    };
    return el(
      "fieldset",
      { class: "choices" },
      el("legend", {}, "Images in a batch"),
      ...boxes.map((box) => el("label", { class: "check" }, box, box.value)),
      own,
    );
  }

  #drawSlider() {
    const sizes = this.sizes();
    const at = sizes.findIndex((size) => String(size) === String(this.#marked()));
    const said = el("span", { class: "value" }, this.#sizeName(sizes[at]));
    const known = /** @type {HTMLInputElement | null} */ (this.slider.querySelector("input"));
    if (known && known.max === String(sizes.length - 1)) {
      known.value = String(at); // it may be the one that the user holds
      known.setAttribute("aria-valuetext", this.#sizeName(sizes[at]));
      this.slider.querySelector(".value")?.replaceWith(said);
      return;
    }
    const slider = el("input", {
      type: "range",
      min: 0,
      max: sizes.length - 1,
      value: at,
      disabled: sizes.length === 1,
      "aria-valuetext": this.#sizeName(sizes[at]),
      oninput: () => this.#mark(this.sizes()[Number(slider.value)]),
    });
    this.slider.replaceChildren(labelled("Resolution", slider, said));
  }

  /** @param {Pair} size */
  #sizeName(size) {
    return `${size.join(" × ")}${String(size) === String(this.model.image_size) ? " (native)" : ""}`;
  }

  #draw() {
    this.place.hidden = this.known === null;
    this.about.replaceChildren(
      ...(this.known === null ? ["There is no prediction yet: change a field to ask for one."] : this.#basis()),
    );
    if (this.known === null) {
      this.verdict.textContent = "";
      return;
    }
    const sizes = this.sizes();
    const at = (/** @type {Pair} */ size, /** @type {number} */ batch) =>
      /** @type {Row} */ (this.#rowsAt(size).find((row) => row.batch === batch));
    const x = sizes.map(([height]) => height);
    const lines = this.batches.map((batch, index) => ({
      name: `batch ${grouped(batch)}`,
      colour: lineColour(index),
      values: sizes.map((size) => at(size, batch).total_bytes),
    }));
    const total = this.#total();
    const room = total - this.#held();
    const limit = this.cardGiB > 0 ? `card: ${this.cardGiB} GiB` : `this server's budget: ${inGiB(total)}`;
    const limits = [{ value: total, name: limit, colour: "--bad" }];
    if (room < total && room > 0)
      limits.push({ value: room, name: `left for the encoder: ${inGiB(room)}`, colour: "--good" });
    this.memory.show({ x, lines, limits, room, marked: null });
    const of = (/** @type {"flops" | "tokens"} */ key) => sizes.map((size) => at(size, 1)[key]);
    this.flops.show({ x, lines: [{ name: "FLOPs", colour: "--plot-5", values: of("flops") }] });
    this.tokens.show({ x, lines: [{ name: "tokens", colour: "--plot-6", values: of("tokens") }] });
    this.legend.replaceChildren(
      ...lines.map(({ name, colour }) => key(name, colour)),
      key("fits beside the language model", "--plot-room", this.beside.billions === 0 || room <= 0),
    );
    this.#drawTable();
    this.#drawMarked();
  }

  /** What the prediction takes for granted. */
  #basis() {
    const device = this.known?.forecast.device ?? "";
    const basis = `Predicted from the encoder's code for ${device}, in ${this.model.dtype}, final tokens.`;
    if (device !== "cpu" || this.cardGiB === 0) return [basis];
    const beside = Math.min(this.#held(), this.#total());
    const command = `visiontower vram ${this.model.id} --gpu ${this.cardGiB}GiB --beside ${beside}`;
    const more =
      " CUDA takes about 0.6 GiB more, for its context and what its allocator cannot fill. This command counts it: ";
    return [basis, more, el("code", {}, command)];
  }

  #drawMarked() {
    if (this.known === null) return;
    const size = this.#marked();
    for (const plot of [this.memory, this.flops, this.tokens]) plot.mark(size[0]);
    for (const row of this.table.querySelectorAll("tbody tr")) {
      if (/** @type {HTMLElement} */ (row).dataset.size === String(size)) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    this.verdict.textContent = this.#verdict(size);
    this.#drawNumbers();
    this.#drawPicture(size);
  }

  /** Whether the encoder fits, and in which batches. @param {Pair} size */
  #verdict(size) {
    const rows = this.#rowsAt(size);
    const { billions, bits, cacheGiB } = this.beside;
    const card = this.cardGiB > 0 ? `${this.cardGiB} GiB` : `this server's budget of ${inGiB(this.#total())}`;
    const weights = (billions * bits) / 8;
    const model = `${billions === 8 ? "an" : "a"} ${billions} B model in ${bits} bits (${weights.toFixed(1)} GB)`;
    const cache = cacheGiB > 0 ? ` and its KV cache (${short(cacheGiB)} GiB)` : "";
    const where = billions > 0 ? `Beside ${model}${cache} on ${card}` : `On ${card}`;
    const room = this.#total() - this.#held();
    if (room <= 0) return `${capital(model)}${cache} alone does not fit on ${card}.`;
    const largest = this.#largest(rows);
    const at = size.join(" × ");
    if (largest === 0) {
      return `${where}, not even one image at ${at} fits: it takes ${inGiB(rows[0].total_bytes)}, and ${inGiB(room)} are left.`;
    }
    if (largest === 1) return `${where}, one image at a time at ${at} fits.`;
    const more = largest === LARGEST_BATCH && this.cardGiB + billions > 0 ? " and more" : "";
    return `${where}, batches of up to ${grouped(largest)}${more} at ${at} fit.`;
  }

  /** Of the size under the pointer, or else of the marked one. */
  #drawNumbers() {
    if (this.known === null) return;
    const size = this.pointed === null ? this.#marked() : this.sizes()[this.pointed];
    const rows = this.#rowsAt(size);
    const [one] = rows;
    const [gridRows, gridCols] = one.grid;
    const facts = {
      Grid: `${gridRows} × ${gridCols}`,
      Tokens: grouped(one.tokens),
      "FLOPs of an image": inFlops(one.flops),
      "Largest batch beside the language model": grouped(this.#largest(rows)),
      "Largest batch in this server's budget": grouped(one.max_batch),
    };
    if (this.beside.billions === 0) delete (/** @type {any} */ (facts)["Largest batch beside the language model"]);
    const shown = rows.filter(({ batch }) => this.batches.includes(batch));
    this.numbers.replaceChildren(
      el("h3", {}, this.#sizeName(size)),
      el(
        "dl",
        { class: "facts" },
        ...Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
      ),
      el("div", { class: "keys" }, ...PARTS.map(({ name, colour }) => key(name, colour))),
      ...shown.map((row) => split(row)),
    );
  }

  /** What resolution buys: the picture as coarse as the encoder sees it, under its grid. @param {Pair} size */
  #drawPicture([height, width]) {
    const [picture] = this.page.pictures.chosen;
    const panel = /** @type {HTMLElement} */ (this.map.element.parentElement);
    panel.hidden = !picture?.image;
    if (!picture?.image) return;
    const box = seenBox(picture, this.model.preprocessing, { width, height });
    const [rows, cols] = this.#rowsAt([height, width])[0].grid;
    this.map.show(
      coarse(picture, width / box.width, height / box.height),
      box,
      `${picture.name} at ${width} × ${height} pixels`,
    );
    this.map.setGrid({ rows, cols });
    this.map.paint(null);
    const patch = [box.width / cols, box.height / rows].map((side) => short(side)).join(" × ");
    this.map.caption.textContent =
      `${picture.name} at ${height} × ${width}, in ${rows} × ${cols} tokens. ` +
      `A token has ${patch} pixels of the picture, of ${picture.width} × ${picture.height}.`;
  }

  #drawTable() {
    const head = [
      "Resolution",
      "Grid",
      "Tokens",
      "FLOPs",
      ...this.batches.map((batch) => `Batch ${grouped(batch)}`),
      "Largest batch",
    ];
    const body = this.sizes().map((size) => {
      const rows = this.#rowsAt(size);
      const [one] = rows;
      const bytes = rows.filter(({ batch }) => this.batches.includes(batch)).map((row) => inGiB(row.total_bytes));
      const cells = [
        one.grid.join(" × "),
        grouped(one.tokens),
        inFlops(one.flops),
        ...bytes,
        grouped(this.#largest(rows)),
      ];
      return el(
        "tr",
        { "data-size": String(size) },
        el("th", { scope: "row" }, this.#sizeName(size)),
        ...cells.map((cell) => el("td", { class: "number" }, cell)),
      );
    });
    const columns = head.map((name, index) => el("th", { scope: "col", class: index > 0 ? "number" : "" }, name));
    this.table.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...columns)), el("tbody", {}, ...body)));
  }

  /** Tab-separated, with plain numbers: for a sheet. */
  async #copyTable() {
    const names = ["batch", "tokens", "flops", ...PARTS.map((part) => part.key), "total_bytes", "max_batch"];
    const rows = (this.known?.forecast.rows ?? []).filter(({ batch }) => this.batches.includes(batch));
    const lines = rows.map((row) => [
      resolutionOf(row.resolution),
      row.grid.join("x"),
      ...names.map((name) => row[/** @type {keyof Row} */ (name)]),
    ]);
    const text = [["resolution", "grid", ...names], ...lines].map((line) => line.join("\t")).join("\n");
    try {
      await navigator.clipboard.writeText(text);
      this.page.say(`${rows.length} rows are copied, in bytes.`);
    } catch {
      getSelection()?.selectAllChildren(this.table);
      this.page.say("The table is selected: copy it with the keyboard.");
    }
  }
}

/** @param {string} title @param {Plot} plot @param {...HTMLElement} more */
function figure(title, plot, ...more) {
  return el("section", { class: "panel measures", "aria-label": title }, el("h3", {}, title), ...more, plot.element);
}

/** A colour and what it stands for. @param {string} name @param {string} colour @param {boolean} [hidden] */
function key(name, colour, hidden = false) {
  return el("span", { class: "key", hidden }, swatch(colour), name);
}

/** A batch's memory: its parts as a bar, and in words. @param {Row} row */
function split(row) {
  const bar = el("div", { class: "split", "aria-hidden": "true" });
  for (const { key, colour } of PARTS) {
    const part = el("span");
    part.style.flexGrow = String(row[key] / row.total_bytes);
    part.style.background = `var(${colour})`;
    bar.append(part);
  }
  const words = PARTS.map(({ key, name }) => `${name} ${inGiB(row[key])}`).join(", ");
  return el(
    "div",
    { class: "split-row" },
    el("div", {}, el("strong", {}, `batch ${grouped(row.batch)}: ${inGiB(row.total_bytes)}`)),
    bar,
    el("div", { class: "note" }, words),
  );
}

/** The picture at this scale. @param {Picture} picture @param {number} scaleX @param {number} scaleY @returns {Picture} */
function coarse(picture, scaleX, scaleY) {
  const { image } = picture;
  if (image === null) return picture;
  const side = (/** @type {number} */ pixels, /** @type {number} */ scale, /** @type {number} */ most) =>
    Math.max(1, Math.min(Math.round(pixels * scale), most));
  const canvas = el("canvas", {
    width: side(picture.width, scaleX, image.width),
    height: side(picture.height, scaleY, image.height),
  });
  const context = canvas.getContext("2d");
  if (context) {
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
  }
  return { ...picture, image: canvas };
}

/** @param {Beside} beside */
function besideBytes({ billions, bits, cacheGiB }) {
  return billions === 0 ? 0 : (billions * 1e9 * bits) / 8 + cacheGiB * GIB;
}

/** Whether the server's budget has its weights. @param {Model} model */
function isLoaded(model) {
  return model.state !== "not loaded";
}

/** @param {number[]} options @param {number} chosen @param {(value: number) => string} name @param {(value: number) => void} onchange */
function numberChoice(options, chosen, name, onchange) {
  const texts = options.map((value) => ({ value: String(value), text: name(value) }));
  return choice(texts, String(chosen), (value) => onchange(Number(value)));
}

/** @param {number[]} options @param {string | null} value @param {number} otherwise */
function oneOf(options, value, otherwise) {
  return value !== null && options.includes(Number(value)) ? Number(value) : otherwise;
}

/** @param {number} value */
function isBatch(value) {
  return Number.isInteger(value) && value >= 1 && value <= LARGEST_BATCH;
}

/** @param {number[]} values */
function sorted(values) {
  return [...new Set(values)].sort((a, b) => a - b);
}

/** @param {string} sentence */
function capital(sentence) {
  return sentence[0].toUpperCase() + sentence.slice(1);
}
