/** What the page does now: one job at a time, with its progress, and buttons that stop it and try again. */

import { byId } from "./dom.js";

/**
 * @typedef {"done" | "ended" | "replaced"} Outcome ended: by an error or by the user; replaced: by another job
 * @typedef {{signal: AbortSignal, progress: (done: number, total: number) => void}} Task
 */

export class Work {
  /**
   * @param {Object} handlers
   * @param {() => void} handlers.ondone
   * @param {(error: unknown) => boolean} handlers.onerror gives whether the user is offered to try again
   * @param {() => void} handlers.onagain
   */
  constructor({ ondone, onerror, onagain }) {
    this.ondone = ondone;
    this.onerror = onerror;
    /** @type {AbortController | null} */
    this.running = null;
    this.bar = /** @type {HTMLProgressElement} */ (byId("progress"));
    this.stopButton = byId("stop");
    this.again = byId("again");
    this.stopButton.addEventListener("click", () => this.stop());
    this.again.addEventListener("click", () => {
      byId("view").focus({ preventScroll: true }); // this button hides
      onagain();
    });
  }

  /** @param {string} sentence */
  say(sentence) {
    byId("status-text").textContent = sentence;
  }

  stop() {
    this.running?.abort();
  }

  /** Stop the job, and say no more of it: its view is left. */
  leave() {
    this.stop();
    this.running = null;
    this.say("");
    this.offerAgain(false);
    this.#show(false);
  }

  /** @param {boolean} isOffered */
  offerAgain(isOffered) {
    this.again.hidden = !isOffered;
  }

  /**
   * Do a job in place of the one before, which is stopped.
   *
   * @param {string} what is done, for people: "Embedding 3 pictures"
   * @param {(task: Task) => Promise<void>} job
   * @returns {Promise<Outcome>}
   */
  async run(what, job) {
    this.stop();
    const running = new AbortController();
    this.running = running;
    this.#show(true);
    this.say(what);
    try {
      await job({
        signal: running.signal,
        progress: (done, total) => {
          if (this.running !== running) return;
          this.bar.max = total;
          this.bar.value = done;
          this.say(`${what}: ${done} of ${total}`);
        },
      });
      if (this.running !== running) return "replaced";
      this.say("");
      this.ondone();
      return "done";
    } catch (error) {
      if (this.running !== running) return "replaced";
      this.say(running.signal.aborted ? "Stopped." : "");
      this.offerAgain(running.signal.aborted || this.onerror(error));
      return "ended";
    } finally {
      if (this.running === running) {
        this.running = null;
        this.#show(false);
      }
    }
  }

  /** @param {boolean} isBusy */
  #show(isBusy) {
    if (isBusy) this.offerAgain(false);
    else if (document.activeElement === this.stopButton) {
      (this.again.hidden ? byId("view") : this.again).focus({ preventScroll: true });
    }
    this.bar.hidden = this.stopButton.hidden = !isBusy;
    this.bar.removeAttribute("value");
    byId("status").classList.toggle("busy", isBusy);
    byId("view").setAttribute("aria-busy", String(isBusy));
  }
}
