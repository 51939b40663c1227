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
   */
  constructor(onchange) {
    this.onchange = onchange;
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
    const response = await fetch(new URL("web/samples/samples.json", document.baseURI)).catch(() => null);
    this.samples = response?.ok ? await response.json() : []; // own pictures need none
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
    const turn = ++this.turn;
    this.missing.clear();
    /** @type {string[]} */
    const ids = [];
    for (const each of new Set(names)) {
      const [id, name = id] = each.split("~");
      const found = this.all.find((picture) => picture.id === id) ?? (await this.#fromLink(id));
      if (found) ids.push(id);
      else this.missing.set(id, name);
    }
    if (turn === this.turn) await this.#take(ids.slice(0, MOST_CHOSEN));
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
      return sample ? this.#addSample(sample).catch(() => null) : null;
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
    /** @type {string[]} */
    const refused = [];
    for (const [index, file] of files.entries()) {
      if (files.length > MOST_CHOSEN) this.tray.tell(`Reading ${index + 1} of ${files.length} files`);
      const id = await idOf(file).catch(() => null);
      if (id === null || file.size === 0) {
        refused.push(id === null ? `${file.name} cannot be read: it is a folder, or gone.` : `${file.name} is empty.`);
        continue;
      }
      if (!this.all.some((picture) => picture.id === id)) added.push(this.#add(id, file.name, file));
      this.missing.delete(id);
      ids.push(id);
    }
    // before they stand in the link, which a reload follows
    await storage.keep(added.map(({ id, name, upload }) => ({ id, name, blob: upload.blob })));
    this.tray.tell(null);
    this.tray.trouble(refused.join(" "));
    if (ids.length > 0) await this.choose([...new Set(ids)].slice(0, MOST_CHOSEN));
  }

  /** Add all samples, and leave chosen what is. */
  async addSamples() {
    await this.#withSamples(this.samples, () => this.chosenIds);
  }

  /** Show a sample beside none, or beside what is chosen. @param {Sample} sample @param {boolean} [beside] */
  async chooseSample(sample, beside = false) {
    await this.#withSamples([sample], ([{ id }]) => (beside ? [...this.chosenIds, id] : [id]));
  }

  /** @param {Sample[]} samples @param {(added: Picture[]) => string[]} chosen ids, when they are here */
  async #withSamples(samples, chosen) {
    /** @type {Picture[]} */
    const added = [];
    try {
      for (const sample of samples) added.push(await this.#addSample(sample));
    } catch {
      this.tray.trouble("The server does not give this sample.");
      return;
    }
    this.tray.trouble("");
    await this.choose(chosen(added));
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
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${sample.file}: ${response.status}`);
    const blob = await response.blob();
    // another click may have brought it meanwhile
    return this.all.find((picture) => picture.id === id) ?? this.#add(id, sample.file, blob, sample, url);
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
    const free = this.#freeName(name);
    const picture = { id, name: free, upload: { name: free, blob, url }, image: null, width: 0, height: 0, sample };
    this.all.push(picture);
    return picture;
  }

  /** The name, or "cat-2.jpg" for another "cat.jpg": code to copy must tell them apart. @param {string} name */
  #freeName(name) {
    const [, stem, ending] = /^(.*?)(\.\w+)?$/s.exec(name) ?? [];
    let free = name;
    for (let count = 2; this.all.some((each) => each.name === free); count++) free = `${stem}-${count}${ending ?? ""}`;
    return free;
  }
}
