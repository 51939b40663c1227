/** Live: what the server does now, from /metrics every second: queue, batches, stages, memory, refusals. */

import { Problem, Unreachable, send } from "../../api/call.js";
import { vectorsCall } from "../../api/embed.js";
import { Interval, METRICS_CALL, Metrics, parseMetrics } from "../../api/metrics.js";
import { modelOf } from "../../api/models.js";
import { grouped, inGiB, short } from "../../numbers/units.js";
import { button, el, labelled, put } from "../../parts/dom.js";
import { encoderChoice } from "../../parts/encoder-fields.js";
import { cell, head, table } from "../../parts/table.js";
import { View } from "../view.js";
import { BATCHES, FORWARDS, QUEUE, TRAFFIC, stagesOf } from "./measures.js";
import { SHOWN_S, Strip } from "./strip.js";

/**
 * @import {Call} from "../../api/call.js"
 * @import {Moment} from "./measures.js"
 * @import {Page} from "../view.js"
 */

const EVERY_MS = 1000;
const REFUSED = "visiontower_rejected_total";
const RATIO = "visiontower_vram_prediction_ratio";
/** @type {Record<string, string>} */
const KINDS = {
  weights: "weights",
  allocated: "allocated for tensors",
  reserved: "reserved by the allocator",
  budget: "this server's budget",
  free: "free on the device",
  total: "the device's memory",
};
/** Of the button's traffic. */
const [AT_ONCE, REQUESTS, MOST_REQUESTS] = [4, 100, 10_000];

export class LiveView extends View {
  static intro =
    "What does the server do now? This view asks it every second and shows the last two minutes. To see it work, send " +
    "requests of your own, or make some traffic with the ticked pictures.";
  static words = /** @type {const} */ (["encoder", "batch", "forward", "queue"]);

  /** @param {Page} page */
  constructor(page) {
    super(page);
    this.model = page.models[0];
    this.requests = REQUESTS;
    this.isPaused = false;
    /** Oldest first. @type {Moment[]} */
    this.history = [];
    /** @type {Metrics | null} */
    this.latest = null;
    /** Ends the asking. @type {AbortController | null} */
    this.asking = null;
    /** What the button sent. @type {Call[]} */
    this.sent = [];
    this.controls = el("div", { class: "row controls" });
    this.state = el("p", { class: "problem", role: "status", hidden: true });
    this.stages = new Strip(stagesOf(this.model.id));
    const forwards = new Strip(FORWARDS);
    this.strips = [...[TRAFFIC, QUEUE, BATCHES].map((measure) => new Strip(measure)), this.stages, forwards];
    this.memory = el("dl", { class: "facts" });
    forwards.element.append(el("h4", {}, "The device's memory"), this.memory);
    const refusals = table([head("reason"), head("2 minutes", true), head("since the start", true)], []);
    this.refusals = refusals.tBodies[0];
    this.place = el(
      "div",
      { class: "live", hidden: true },
      ...this.strips.map(({ element }) => element),
      el(
        "section",
        { class: "panel measures", "aria-label": "Refusals" },
        el("h3", {}, "Requests refused, by reason"),
        refusals,
      ),
    );
    this.element.append(this.controls, this.state, this.place);
    document.addEventListener("visibilitychange", () => {
      if (this.asking !== null && document.visibilityState === "visible") this.#askOn();
    });
  }

  /** @param {URLSearchParams} parameters */
  restore(parameters) {
    this.model = modelOf(this.page.models, parameters.get("model"));
    const requests = Number(parameters.get("requests"));
    this.requests = Number.isInteger(requests) && requests >= 1 && requests <= MOST_REQUESTS ? requests : REQUESTS;
  }

  parameters() {
    return new URLSearchParams({ model: this.model.id, requests: String(this.requests) });
  }

  calls() {
    return [METRICS_CALL, ...this.sent];
  }

  update() {
    this.model = modelOf(this.page.models, this.model.id);
    this.#drawControls();
    this.page.changed();
    if (this.asking === null && !this.isPaused) this.#askOn();
  }

  leave() {
    this.asking?.abort();
    this.asking = null;
  }

  /** Ask every second, while the view is open and the tab visible. */
  async #askOn() {
    this.asking?.abort();
    const asking = new AbortController();
    this.asking = asking;
    while (!asking.signal.aborted && document.visibilityState === "visible") {
      const next = new Promise((resolve) => setTimeout(resolve, EVERY_MS));
      await this.#ask(asking.signal);
      await next;
    }
  }

  /** @param {AbortSignal} signal */
  async #ask(signal) {
    const at = Date.now();
    try {
      const answer = await send(METRICS_CALL, { signal });
      const metrics = new Metrics(parseMetrics(await answer.text()), at);
      const isLate = this.latest === null || at - this.latest.at > 3 * EVERY_MS; // the tab was hidden, or the server gone
      if (isLate && this.latest !== null) this.history.push({ at: at - EVERY_MS, interval: null });
      this.history.push({ at, interval: this.latest && new Interval(this.latest, metrics) });
      this.latest = metrics;
      this.#say(null);
    } catch (error) {
      if (signal.aborted) return;
      this.history.push({ at, interval: null });
      if (error instanceof Unreachable) this.#say("The server does not answer. It is asked again every second.");
      else this.#pause(error instanceof Problem ? sentenceOf(error) : `This page cannot read the metrics: ${error}`);
    }
    this.history = this.history.filter((each) => each.at > at - SHOWN_S * 1000);
    this.#draw();
  }

  /** @param {string | null} sentence null: all is well */
  #say(sentence) {
    this.state.hidden = sentence === null;
    if (this.state.textContent !== (sentence ?? "")) this.state.textContent = sentence;
  }

  /** @param {string | null} why null: the user wants it */
  #pause(why) {
    this.isPaused = true;
    this.leave();
    this.#say(why);
    this.#drawControls();
  }

  #goOn() {
    this.isPaused = false;
    this.#drawControls();
    this.#askOn();
  }

  #drawControls() {
    const pause = button(this.isPaused ? "Go on" : "Pause", () => (this.isPaused ? this.#goOn() : this.#pause(null)));
    const encoder = encoderChoice(this.page.models, this.model, (model) => {
      this.model = model;
      this.page.changed();
      this.#draw();
    });
    const requests = el("input", {
      type: "number",
      min: 1,
      max: MOST_REQUESTS,
      value: this.requests,
      onchange: () => {
        if (requests.value === "" || !requests.checkValidity()) requests.value = String(this.requests);
        this.requests = Number(requests.value);
        this.page.changed();
      },
    });
    const traffic = button("Make some traffic", () => this.#makeTraffic());
    traffic.disabled = this.page.pictures.chosen.length === 0;
    traffic.title = `Embeds the chosen pictures in turn, ${AT_ONCE} requests at once.`;
    put(
      this.controls,
      pause,
      labelled("Encoder of stages and traffic", encoder),
      labelled("Requests to send", requests),
      traffic,
    );
  }

  /** Embed the chosen pictures in turn, some at once. */
  async #makeTraffic() {
    const calls = this.page.pictures.chosen.map((picture) => vectorsCall(this.model, { pictures: [picture] }));
    const total = this.requests;
    let refused = 0;
    this.sent = calls;
    const outcome = await this.page.work("Sending requests", async ({ signal, progress }) => {
      let [begun, done] = [0, 0];
      const sendOn = async () => {
        while (begun < total) {
          const call = calls[begun++ % calls.length];
          try {
            await (await send(call, { signal })).arrayBuffer();
          } catch (error) {
            if (!(error instanceof Problem && [429, 503].includes(error.status))) throw error;
            refused++; // it is busy: that is what this shows
          }
          progress(++done, total);
        }
      };
      await Promise.all(Array.from({ length: AT_ONCE }, sendOn));
    });
    if (outcome === "done")
      this.page.say(`${grouped(total - refused)} requests were answered, ${grouped(refused)} refused.`);
  }

  #draw() {
    const { latest, history } = this;
    if (latest === null) return;
    this.place.hidden = false;
    this.stages.measure = stagesOf(this.model.id);
    for (const strip of this.strips) strip.show(history, latest);
    const bytes = Object.entries(KINDS).flatMap(([kind, name]) =>
      latest.samples("visiontower_vram_bytes", { kind }).map(({ value }) => [name, inGiB(value)]),
    );
    const ratios = latest
      .samples(RATIO)
      .map(({ labels, value }) => [`${labels.model}: measured over predicted`, short(value)]);
    fill(
      this.memory,
      [...bytes, ...ratios].flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
    );
    const growth = (/** @type {string} */ reason) =>
      history.reduce((sum, { interval }) => sum + (interval?.growth(REFUSED, { reason }) ?? 0), 0);
    const refused = latest.samples(REFUSED).filter(({ value }) => value > 0);
    const rows = refused.map(({ labels: { reason }, value }) => row([reason, grouped(growth(reason)), grouped(value)]));
    fill(this.refusals, rows.length > 0 ? rows : [row(["none", "0", "0"])]);
  }
}

/** @param {Problem} problem */
function sentenceOf({ facts, message }) {
  if (facts.type !== "/problems/on-another-port") return message;
  return `This server keeps its metrics on a port of their own, ${facts.port}, for Prometheus: this page cannot read them.`;
}

/** @param {string[]} cells the first is words, the others numbers */
function row(cells) {
  return el("tr", {}, ...cells.map((text, index) => cell(text, index > 0)));
}

/** Put these in place of the children, if they differ. @param {HTMLElement} element @param {HTMLElement[]} children */
function fill(element, children) {
  const isSame =
    children.length === element.children.length &&
    children.every((each, index) => each.isEqualNode(element.children[index]));
  if (!isSame) element.replaceChildren(...children);
}
