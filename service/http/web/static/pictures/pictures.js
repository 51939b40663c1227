/** The pictures: chosen by the user, from the camera, or samples. And the tray that shows them. */

import { button, byId, el } from "../parts/dom.js";
import { MOST_WHOLE, drawWhole, scaled, thumbnail } from "./drawing.js";
import { PICTURES, filesOf } from "./dropped.js";
import * as kept from "./storage.js";

/**
 * @import {Upload} from "../api/call.js"
 *
 * @typedef {{file: string, name: string, texts: string[], drawing: boolean}} Sample
 *
 * @typedef {Object} Picture
 * @property {string} id "sample:FILE", or "own:" and what its bytes are
 * @property {string} name
 * @property {Upload} upload its bytes
 * @property {HTMLCanvasElement | null} image upright; null if this browser cannot draw it, or if it is not chosen
 * @property {HTMLCanvasElement | null} [small] the same for thumbnails; null if this browser cannot draw it, undefined
 *   until it is in view
 * @property {number} width of the whole picture, upright; 0 if it was not drawn
 * @property {number} height
 * @property {Sample | null} sample
 */

/** Pixels over which the user is asked whether to shrink a picture, and those it is shrunk to. */
const LARGE = 4_000_000;
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
    const found = await kept.find(id);
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
    await kept.keep(added.map(({ id, name, upload }) => ({ id, name, blob: upload.blob })));
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
    await kept.forget(picture.id);
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
    const canvas = scaled(bitmap, Math.max(width, height));
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

/** For people. @param {Picture} picture */
export function titleOf({ name, sample }) {
  return sample?.name ?? name;
}

/** Equal bytes have equal ids: cyrb53, 53 bits, which only has to tell one user's pictures apart. @param {Blob} blob */
async function idOf(blob) {
  let [a, b] = [0xdeadbeef, 0x41c6ce57];
  for (const byte of new Uint8Array(await blob.arrayBuffer())) {
    a = Math.imul(a ^ byte, 2654435761);
    b = Math.imul(b ^ byte, 1597334677);
  }
  a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909);
  return `own:${(2 ** 32 * (2097151 & b) + (a >>> 0)).toString(36)}-${blob.size.toString(36)}`;
}

/** The strip of thumbnails with the ways to add pictures. */
class Tray {
  /** @param {Pictures} pictures */
  constructor(pictures) {
    this.pictures = pictures;
    this.list = el("ul", { class: "thumbs", "aria-label": "Pictures here" });
    this.samples = el("div", { class: "samples" });
    this.note = el("span", { class: "note" });
    const file = el("input", {
      type: "file",
      multiple: true,
      accept: PICTURES,
      hidden: true,
      onchange: () => {
        pictures.addFiles([...(file.files ?? [])]); // a copy: the next line empties the list
        file.value = "";
      },
    });
    const camera = button("Camera", () => new Camera(pictures).open());
    if (!navigator.mediaDevices) {
      camera.disabled = true;
      camera.title = "Browsers offer the camera on https and localhost only.";
    }
    const details = el("details", { ontoggle: () => this.#drawSamples() }, el("summary", {}, "Samples"), this.samples);
    byId("pictures").append(
      el(
        "div",
        { class: "row add" },
        button("Add pictures", () => file.click(), { class: "primary" }),
        camera,
        details,
        this.note,
      ),
      file,
      this.list,
    );
    this.tell(null);
    listenForDrops(pictures);
  }

  /** @param {string | null} sentence null: what users can do */
  tell(sentence) {
    this.note.textContent = sentence ?? "or drop them here, a folder too, or paste. They go to this server only.";
  }

  draw() {
    const { pictures } = this;
    this.list.replaceChildren(...pictures.all.map((picture) => this.#thumb(picture)));
    if (pictures.missing.size > 0) this.list.append(missing([...pictures.missing.values()]));
  }

  /** When they are asked for: their pictures are sent then. */
  #drawSamples() {
    const { pictures } = this;
    this.samples.replaceChildren(
      ...pictures.samples.map((sample) => {
        const image = el("img", { src: `web/samples/${sample.file}`, alt: "", width: 56, height: 56 });
        return el(
          "button",
          {
            type: "button",
            class: "sample",
            title: sample.name,
            onclick: (event) => pictures.chooseSample(sample, event.shiftKey),
          },
          image,
          el("span", {}, sample.name),
        );
      }),
    );
  }

  /** @param {Picture} picture */
  #thumb(picture) {
    const { pictures } = this;
    const isChosen = pictures.chosenIds.includes(picture.id);
    const shrink = el("span");
    const only = el(
      "button",
      {
        type: "button",
        class: "thumb",
        title: `Show ${picture.name} alone`,
        "aria-label": `Show ${picture.name} alone`,
        onclick: () => pictures.choose([picture.id]),
      },
      thumbnail(picture, () => {
        const pixels = picture.width * picture.height;
        if (pixels > LARGE) shrink.replaceChildren(this.#shrink(picture, pixels));
      }),
    );
    const beside = el("input", {
      type: "checkbox",
      checked: isChosen,
      "aria-label": `Show ${picture.name}`,
      title: "Show this picture too",
      onchange: () => {
        const others = pictures.chosenIds.filter((id) => id !== picture.id);
        pictures.choose(beside.checked ? [...others, picture.id] : others);
      },
    });
    const item = el("li", { class: isChosen ? "chosen" : "" }, only, beside);
    item.append(
      button("×", () => pictures.remove(picture), { class: "quiet remove", "aria-label": `Remove ${picture.name}` }),
    );
    item.append(el("span", { class: "name", title: picture.name }, titleOf(picture)), shrink);
    return item;
  }

  /** @param {Picture} picture @param {number} pixels */
  #shrink(picture, pixels) {
    return button(`${(pixels / 1e6).toFixed(0)} MP: shrink to 1 MP`, () => this.pictures.shrink(picture), {
      class: "quiet shrink",
      title: "It is sent whole unless you shrink it here.",
    });
  }
}

/** @param {string[]} names */
function missing(names) {
  const sentence =
    names.length === 1
      ? `This link shows ${names[0]}, which is not in this browser. Add that file.`
      : `This link shows ${names.length} pictures that are not in this browser. Add those files: ${names.join(", ")}`;
  return el("li", { class: "missing", title: sentence }, el("span", {}, sentence));
}

/** @param {Pictures} pictures */
function listenForDrops(pictures) {
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", async (event) => {
    document.body.classList.remove("dropping");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    const files = await filesOf(event.dataTransfer);
    if (files.length === 0) pictures.ontrouble("That folder has no pictures.");
    await pictures.addFiles(files);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    pictures.addFiles(files);
  });
}

/** The camera's picture, in a dialog. */
class Camera {
  /** @param {Pictures} pictures */
  constructor(pictures) {
    this.pictures = pictures;
    /** @type {MediaStream | null} */
    this.stream = null;
    this.video = el("video", { autoplay: true, playsinline: true, muted: true, "aria-label": "The camera's picture" });
    this.dialog = el(
      "dialog",
      { "aria-label": "Camera", onclose: () => this.#end() },
      this.video,
      el(
        "div",
        { class: "row" },
        button("Take the picture", () => this.#take(), { class: "primary" }),
        button("Cancel", () => this.dialog.close()),
      ),
    );
  }

  async open() {
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: true });
    } catch (error) {
      const refused = error instanceof DOMException && error.name === "NotAllowedError";
      this.pictures.ontrouble(refused ? "The browser was not allowed to use the camera." : "No camera was found.");
      return;
    }
    this.video.srcObject = this.stream;
    document.body.append(this.dialog);
    this.dialog.showModal();
  }

  #take() {
    const canvas = el("canvas", { width: this.video.videoWidth, height: this.video.videoHeight });
    canvas.getContext("2d")?.drawImage(this.video, 0, 0);
    canvas.toBlob((blob) => {
      const name = `camera-${this.pictures.all.length + 1}.jpg`;
      if (blob) this.pictures.addFiles([new File([blob], name, { type: "image/jpeg" })]);
      this.dialog.close();
    }, "image/jpeg");
  }

  #end() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.dialog.remove();
  }
}
