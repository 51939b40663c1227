/** The pictures of the page: chosen by the user, from the camera, or samples. */

import { MOST_WHOLE, drawWhole, resized } from "./drawing.js";
import { idOf } from "./picture.js";
import * as storage from "./storage.js";
import { Tray } from "./tray.js";

/** @import {Picture, Sample} from "./picture.js" */

/** Pixels that a large picture is shrunk to. */
const SHRUNK = 1_000_000;
/** Pictures chosen by adding many, or by a link to many. */
const MOST_CHOSEN = MOST_WHOLE;

export class Pictures {
  /**
   * @param {() => void} onchange other pictures are chosen
   * @param {(sentence: string) => void} ontrouble
   */
  constructor(onchange, ontrouble) {
    this.onchange = onchange;
    this.ontrouble = ontrouble;
    /** @type {Picture[]} */
    this.all = [];
    /** @type {Sample[]} */
    this.samples = [];
    /** Ids, in the order chosen. @type {string[]} */
    this.chosenIds = [];
    /** Ids that a link names and this browser does not have. @type {Map<string, string>} id -> name */
    this.missing = new Map();
    /** Counts what was chosen, so that only the last choice is told. */
    this.turn = 0;
    this.tray = new Tray(this);
  }

  /** The chosen pictures, in the order chosen. @returns {Picture[]} */
  get chosen() {
    return this.chosenIds.flatMap((id) => this.all.filter((picture) => picture.id === id));
  }

  /** Load the list of samples. */
  async start() {
    const response = await fetch(new URL("web/samples/samples.json", document.baseURI));
    this.samples = response.ok ? await response.json() : [];
    this.tray.draw();
  }

  /**
   * Add the pictures of a link, choose the first of them, and name those that are not here. Of an empty link: the
   * first sample.
   *
   * @param {string[]} names "sample:FILE" or "own:ID~NAME"
   */
  async restore(names) {
    if (names.length === 0 && this.samples.length > 0) names = [`sample:${this.samples[0].file}`];
    this.missing.clear();
    /** @type {string[]} */
    const ids = [];
    for (const each of names) {
      const [id, name = id] = each.split("~");
      const found = this.all.find((picture) => picture.id === id) ?? (await this.#fromLink(id));
      if (found) ids.push(id);
      else this.missing.set(id, name);
    }
    await this.#take(ids.slice(0, MOST_CHOSEN));
  }

  /** These and the missing ones, as `restore` takes them. @param {Picture[]} pictures @returns {string[]} */
  links(pictures) {
    const missing = [...this.missing].map(([id, name]) => `${id}~${name}`);
    return [...pictures.map(({ id, name, sample }) => (sample ? id : `${id}~${name}`)), ...missing];
  }

  /** @param {string} id @returns {Promise<Picture | null>} */
  async #fromLink(id) {
    if (id.startsWith("sample:")) {
      const sample = this.samples.find(({ file }) => `sample:${file}` === id);
      return sample ? this.#addSample(sample) : null;
    }
    const found = await storage.find(id);
    return found ? this.#add(id, found.name, found.blob) : null;
  }

  /**
   * Add files, and choose them; of many, the first.
   *
   * @param {File[]} files
   */
  async addFiles(files) {
    /** @type {string[]} */
    const ids = [];
    /** @type {Picture[]} */
    const added = [];
    for (const [index, file] of files.entries()) {
      if (file.size === 0) {
        this.ontrouble(`${file.name} is empty.`);
        continue;
      }
      if (files.length > MOST_CHOSEN) this.tray.tell(`Reading ${index + 1} of ${files.length} files`);
      const id = await idOf(file);
      if (!this.all.some((picture) => picture.id === id)) added.push(this.#add(id, file.name, file));
      this.missing.delete(id);
      ids.push(id);
    }
    // before they stand in the link, which a reload follows
    await storage.keep(added.map(({ id, name, upload }) => ({ id, name, blob: upload.blob })));
    this.tray.tell(null);
    if (ids.length > 0) await this.choose([...new Set(ids)].slice(0, MOST_CHOSEN));
  }

  /** Add all samples, and leave chosen what is. */
  async addSamples() {
    for (const sample of this.samples) await this.#addSample(sample);
    await this.choose(this.chosenIds);
  }

  /** Show a sample beside none, or beside what is chosen. @param {Sample} sample @param {boolean} [beside] */
  async chooseSample(sample, beside = false) {
    const { id } = await this.#addSample(sample);
    await this.choose(beside ? [...this.chosenIds, id] : [id]);
  }

  /** @param {string[]} ids */
  async choose(ids) {
    const turn = ++this.turn;
    await this.#take([...new Set(ids)]);
    if (turn === this.turn) this.onchange();
  }

  /** @param {string[]} ids */
  async #take(ids) {
    this.chosenIds = ids;
    await drawWhole(this.chosen.slice(0, MOST_WHOLE));
    this.tray.draw();
  }

  /** @param {Picture} picture */
  async remove(picture) {
    this.all = this.all.filter((each) => each !== picture);
    await storage.forget(picture.id);
    const left = this.chosenIds.filter((id) => id !== picture.id);
    await this.choose(left.length > 0 || this.all.length === 0 ? left : [this.all[0].id]);
  }

  /** Put a smaller JPEG in the picture's place. @param {Picture} picture */
  async shrink(picture) {
    const scale = Math.sqrt(SHRUNK / (picture.width * picture.height));
    const [width, height] = [picture.width, picture.height].map((side) => Math.round(side * scale));
    const bitmap = await createImageBitmap(picture.upload.blob, {
      resizeWidth: width,
      resizeHeight: height,
      resizeQuality: "high",
    });
    const canvas = resized(bitmap, width, height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    if (blob === null) return;
    const name = picture.name.replace(/\.\w+$/, "") + `-${width}x${height}.jpg`;
    const others = this.chosenIds.filter((id) => id !== picture.id);
    await this.remove(picture);
    await this.addFiles([new File([blob], name, { type: "image/jpeg" })]);
    await this.choose([...others, ...this.chosenIds]);
  }

  /** @param {Sample} sample @returns {Promise<Picture>} */
  async #addSample(sample) {
    const id = `sample:${sample.file}`;
    const known = this.all.find((picture) => picture.id === id);
    if (known) return known;
    const url = String(new URL(`web/samples/${sample.file}`, document.baseURI));
    const blob = await (await fetch(url)).blob();
    return this.#add(id, sample.file, blob, sample, url);
  }

  /**
   * @param {string} id
   * @param {string} name
   * @param {Blob} blob
   * @param {Sample | null} [sample]
   * @param {string} [url]
   * @returns {Picture}
   */
  #add(id, name, blob, sample = null, url) {
    const picture = { id, name, upload: { name, blob, url }, image: null, width: 0, height: 0, sample };
    this.all.push(picture);
    return picture;
  }
}
