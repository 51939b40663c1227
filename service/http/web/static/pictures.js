/** The pictures: chosen by the user, from the camera, or samples. And the tray that shows them. */

import { button, byId, el } from "./dom.js";
import * as kept from "./kept.js";

/**
 * @import {Upload} from "./api.js"
 *
 * @typedef {{file: string, name: string, texts: string[], drawing: boolean}} Sample
 *
 * @typedef {Object} Picture
 * @property {string} id "sample:FILE", or "own:" and what its bytes are
 * @property {string} name
 * @property {Upload} upload its bytes
 * @property {HTMLCanvasElement | null} image upright; null if this browser cannot draw it
 * @property {number} width of the whole picture, upright; 0 if the browser cannot tell
 * @property {number} height
 * @property {Sample | null} sample
 */

/** Pixels over which the user is asked whether to shrink a picture, and those it is shrunk to. */
const LARGE = 4_000_000;
const SHRUNK = 1_000_000;
/** The longest side of what is drawn: a page of 12-megapixel canvases would take gigabytes. */
const DRAWN_SIDE = 1600;

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
   * Choose the pictures of a link, and name those that are not here. Of an empty link: the first sample.
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
    this.chosenIds = ids;
    this.tray.draw();
  }

  /** As `restore` takes them. @returns {string[]} */
  links() {
    const missing = [...this.missing].map(([id, name]) => `${id}~${name}`);
    return [...this.chosen.map(({ id, name, sample }) => (sample ? id : `${id}~${name}`)), ...missing];
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
   * Add files, and choose them.
   *
   * @param {Iterable<File>} files
   */
  async addFiles(files) {
    /** @type {string[]} */
    const ids = [];
    for (const file of files) {
      if (file.size === 0) {
        this.ontrouble(`${file.name} is empty.`);
        continue;
      }
      const id = await idOf(file);
      if (!this.all.some((picture) => picture.id === id)) {
        await this.#add(id, file.name, file);
        await kept.keep({ id, name: file.name, blob: file });
      }
      this.missing.delete(id);
      if (!ids.includes(id)) ids.push(id);
    }
    if (ids.length > 0) this.choose(ids);
  }

  /** Show a sample beside none, or beside what is chosen. @param {Sample} sample @param {boolean} [beside] */
  async chooseSample(sample, beside = false) {
    const { id } = await this.#addSample(sample);
    this.choose(beside ? [...this.chosenIds, id] : [id]);
  }

  /** @param {string[]} ids */
  choose(ids) {
    this.chosenIds = [...new Set(ids)];
    this.tray.draw();
    this.onchange();
  }

  /** @param {Picture} picture */
  async remove(picture) {
    this.all = this.all.filter((each) => each !== picture);
    await kept.forget(picture.id);
    const left = this.chosenIds.filter((id) => id !== picture.id);
    this.choose(left.length > 0 || this.all.length === 0 ? left : [this.all[0].id]);
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
    const canvas = drawn(bitmap, width, height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    if (blob === null) return;
    const name = picture.name.replace(/\.\w+$/, "") + `-${width}x${height}.jpg`;
    const others = this.chosenIds.filter((id) => id !== picture.id);
    await this.remove(picture);
    await this.addFiles([new File([blob], name, { type: "image/jpeg" })]);
    this.choose([...others, ...this.chosenIds]);
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
   * @returns {Promise<Picture>}
   */
  async #add(id, name, blob, sample = null, url) {
    const bitmap = await createImageBitmap(blob).catch(() => null); // upright: EXIF's orientation is applied
    const { width, height } = bitmap ?? { width: 0, height: 0 };
    const scale = Math.min(1, DRAWN_SIDE / Math.max(width, height, 1));
    const image =
      bitmap && drawn(bitmap, Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
    bitmap?.close();
    const picture = { id, name, upload: { name, blob, url }, image, width, height, sample };
    this.all.push(picture);
    return picture;
  }
}

/** @param {ImageBitmap} bitmap @param {number} width @param {number} height */
function drawn(bitmap, width, height) {
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  if (context) {
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, width, height);
  }
  return canvas;
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
    const file = el("input", {
      type: "file",
      multiple: true,
      accept: "image/*,.tif,.tiff,.heic,.heif,.avif,.jxl,.ppm,.dng",
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
    const details = el("details", {}, el("summary", {}, "Samples"), this.samples);
    byId("pictures").append(
      el(
        "div",
        { class: "row add" },
        button("Add pictures", () => file.click(), { class: "primary" }),
        camera,
        details,
        el("span", { class: "note" }, "or drop them here, or paste"),
      ),
      file,
      this.list,
    );
    listenForDrops(pictures);
  }

  draw() {
    const { pictures } = this;
    this.list.replaceChildren(...pictures.all.map((picture) => this.#thumb(picture)));
    this.list.append(...[...pictures.missing].map(([, name]) => missing(name)));
    this.samples.replaceChildren(
      ...pictures.samples.map((sample) => {
        const image = el("img", { src: `web/samples/${sample.file}`, alt: "", width: 56, height: 56, loading: "lazy" });
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
    const only = el(
      "button",
      {
        type: "button",
        class: "thumb",
        title: `Show ${picture.name} alone`,
        "aria-label": `Show ${picture.name} alone`,
        onclick: () => pictures.choose([picture.id]),
      },
      thumbnail(picture),
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
    const pixels = picture.width * picture.height;
    item.append(el("span", { class: "name", title: picture.name }, picture.sample?.name ?? picture.name));
    if (pixels > LARGE) {
      item.append(
        button(`${(pixels / 1e6).toFixed(0)} MP: shrink to 1 MP`, () => pictures.shrink(picture), {
          class: "quiet shrink",
          title: "It is sent whole unless you shrink it here.",
        }),
      );
    }
    return item;
  }
}

/** A small copy of the picture; its name where the browser cannot draw it. @param {Picture} picture */
export function thumbnail(picture) {
  if (picture.image === null) return el("span", { class: "blank" }, picture.name);
  const side = 96;
  const scale = Math.min(1, side / Math.max(picture.image.width, picture.image.height));
  const size = [picture.image.width, picture.image.height].map((each) => Math.max(1, Math.round(each * scale)));
  const canvas = el("canvas", { width: size[0], height: size[1], role: "img", "aria-label": picture.name });
  canvas.getContext("2d")?.drawImage(picture.image, 0, 0, size[0], size[1]);
  return canvas;
}

/** @param {string} name */
function missing(name) {
  return el(
    "li",
    { class: "missing" },
    el("span", {}, `This link shows ${name}, which is not in this browser. Add that file.`),
  );
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
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    pictures.addFiles([...event.dataTransfer.files]);
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
