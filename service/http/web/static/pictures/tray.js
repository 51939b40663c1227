/** The strip of thumbnails, with the ways to add pictures. */

import { button, byId, el, put } from "../parts/dom.js";
import { Camera } from "./camera.js";
import { thumbnail } from "./drawing.js";
import { PICTURES, filesOf } from "./dropped.js";
import { titleOf } from "./picture.js";

/**
 * @import {Picture} from "./picture.js"
 * @import {Pictures} from "./pictures.js"
 */

/** Pixels over which the user is asked whether to shrink a picture. */
const LARGE = 4_000_000;

export class Tray {
  /** @param {Pictures} pictures */
  constructor(pictures) {
    this.pictures = pictures;
    this.list = el("ul", { class: "thumbs", "aria-label": "Pictures here" });
    this.samples = el("div", { class: "samples" });
    this.problem = el("p", { class: "problem", role: "alert", hidden: true });
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
      this.problem,
      this.list,
    );
    this.tell(null);
    listenForDrops(pictures);
  }

  /** @param {string} sentence empty: none any more */
  trouble(sentence) {
    this.problem.hidden = sentence === "";
    this.problem.textContent = sentence;
  }

  /** @param {string | null} sentence null: what users can do */
  tell(sentence) {
    this.note.textContent = sentence ?? "or drop them here, a folder too, or paste. They go to this server only.";
  }

  draw() {
    const { pictures } = this;
    const absent = pictures.missing.size > 0 ? [missing([...pictures.missing.values()])] : [];
    put(this.list, ...pictures.all.map((picture) => this.#thumb(picture)), ...absent);
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
    const files = await filesOf(event.dataTransfer).catch(() => null);
    if (files === null) pictures.tray.trouble("That folder cannot be read.");
    else if (files.length === 0) pictures.tray.trouble("That folder has no pictures.");
    else await pictures.addFiles(files);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    pictures.addFiles(files);
  });
}
