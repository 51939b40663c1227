/** A picture from the camera, in a dialog. */

import { button, el } from "../parts/dom.js";

/** @import {Pictures} from "./pictures.js" */

export class Camera {
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
      this.pictures.tray.trouble(refused ? "The browser was not allowed to use the camera." : "No camera was found.");
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
