/** The page: its views, the link that restores them, and what all views share. */

import { Problem, Unreachable, send } from "./api/call.js";
import { forgetTokens } from "./api/embed.js";
import { served } from "./api/models.js";
import { forgetVectors } from "./api/vector-store.js";
import { inMB } from "./numbers/units.js";
import { copied } from "./parts/clipboard.js";
import { button, byId, download, el } from "./parts/dom.js";
import { startKey } from "./parts/key.js";
import { snapshot } from "./parts/snapshot.js";
import { showSnippets } from "./parts/snippets-dialog.js";
import { startTheme } from "./parts/theme.js";
import { Work } from "./parts/work.js";
import { Pictures } from "./pictures/pictures.js";
import { TABS } from "./views/index.js";

/**
 * @import {Model, Recommended} from "./api/models.js"
 * @import {View, Page as PageOfViews} from "./views/view.js"
 */

const RETRY_MS = 2000;
const MOST_UNANSWERED = 1;

/** @implements {PageOfViews} */
class Page {
  constructor() {
    /** @type {Model[]} */
    this.models = [];
    /** @type {Recommended[]} */
    this.recommended = [];
    this.pictures = new Pictures(() => this.view?.update());
    /** Key -> view, made when it is opened first. @type {Map<string, View>} */
    this.views = new Map();
    /** @type {View | null} */
    this.view = null;
    this.tab = TABS[0];
    this.status = new Work({
      ondone: () => {
        this.unanswered = 0;
        this.trouble(null);
      },
      onerror: (error) => this.#fail(error),
      onagain: () => this.#begin(),
    });
    this.isRecovering = false;
    /** Requests in a row whose connection ended without an answer. */
    this.unanswered = 0;
    /** Counts the links that were followed, so that only the last is shown. */
    this.turn = 0;
    this.tools = el(
      "div",
      { class: "tools", role: "group", "aria-label": "This view" },
      button("Copy as code", () => this.view && showSnippets(this.view.calls()), {
        title: "The requests behind this view, as curl, Python or JavaScript",
      }),
      button("Copy link", () => this.#copyLink(), { title: "A link that shows this again" }),
      button("Save as PNG", () => this.#save(), { title: "A picture of this view" }),
    );
    this.intro = el("div");
    this.advice = el("div", { class: "advice", hidden: true });
    this.place = el("div");
    byId("view").append(this.intro, this.advice, el("div", { class: "shown" }, this.tools, this.place));
  }

  async start() {
    startTheme();
    startKey();
    byId("views").append(...TABS.map(({ key, title }) => el("a", { href: `#${key}`, "data-view": key }, title)));
    // the event's link, not the page's: what is shown may have written its own over it
    window.addEventListener("hashchange", ({ newURL }) => this.view && this.#open(new URL(newURL).hash));
    await this.#begin();
  }

  /** Ask for the served encoders, until the server answers; then show them. They may be others than before. */
  async #begin() {
    this.status.offerAgain(false);
    const isFirst = this.view === null;
    const others =
      isFirst && Promise.all([this.pictures.start(), (tabOf(location.hash) ?? TABS[0]).load()]).catch(() => {}); // said below
    for (let isKnown = false; !isKnown;) {
      try {
        const { models, recommended } = await served();
        Object.assign(this, { models, recommended });
        isKnown = true;
      } catch (error) {
        this.trouble(sentenceOf(error));
        if (error instanceof Problem && error.status === 401) {
          this.status.offerAgain(true); // the user has no key: asking goes on when the user says so
          return;
        }
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
    this.trouble(null);
    forgetTokens();
    forgetVectors();
    await others;
    if (isFirst) await this.#open(location.hash);
    else this.view?.update();
  }

  /** Show what the link says. @param {string} hash */
  async #open(hash) {
    const [, query = ""] = hash.split("?");
    const tab = tabOf(hash) ?? (this.view === null ? TABS[0] : null);
    if (tab === null) return; // a link within the page
    const turn = ++this.turn;
    const parameters = new URLSearchParams(query);
    const kind = await tab.load().catch(() => null);
    if (turn !== this.turn) return; // another link was followed meanwhile
    if (kind === null) {
      this.trouble(`The server does not answer: the view ${tab.title} cannot be opened. Reload the page to try again.`);
      return;
    }
    const known = this.views.get(tab.key);
    const view = known ?? new kind(this);
    this.tab = tab;
    this.views.set(tab.key, view);
    if (this.view !== view) {
      this.status.leave();
      if (!this.isRecovering) this.trouble(null);
      this.view?.leave();
      this.intro.replaceChildren(view.intro);
      this.place.replaceChildren(view.element);
    }
    this.view = view;
    if (query !== "" || !known) view.restore(parameters);
    for (const link of byId("views").querySelectorAll("a")) {
      if (link.dataset.view === tab.key) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${tab.title} · visiontower`;
    const pictures = parameters.getAll("picture");
    if (pictures.length > 0 || this.pictures.all.length === 0) await this.pictures.restore(pictures);
    if (turn !== this.turn) return;
    this.changed();
    view.update();
  }

  /** The link to what is shown now. */
  #link() {
    if (this.view === null) return location.hash;
    const parameters = this.view.parameters();
    for (const name of this.pictures.links(this.view.linkedPictures())) parameters.append("picture", name);
    return `#${this.tab.key}?${parameters}`;
  }

  changed() {
    history.replaceState(null, "", this.#link());
    this.#advise();
  }

  /** Say so if an encoder sees what it was not trained on, and how to serve one that was. */
  #advise() {
    const narrow = this.view?.models().find((model) => model.trained_on);
    const isOther = this.view?.linkedPictures().some(({ sample }) => !sample?.drawing);
    this.advice.hidden = !narrow || !isOther;
    if (!narrow || !isOther) return;
    const [small] = this.recommended;
    this.advice.replaceChildren(
      el("p", {}, `${narrow.id} was trained on ${narrow.trained_on} only: of other pictures its tokens say little.`),
    );
    if (!small) return;
    const command = el("code", {}, `visiontower serve --model ${small.id}`);
    this.advice.append(
      el("p", {}, "This serves one that knows photographs: ", command, ` (downloads ${inMB(small.download_bytes)}).`),
    );
  }

  /** @param {string | null} sentence null: none any more */
  trouble(sentence) {
    byId("problem").hidden = sentence === null;
    byId("problem").textContent = sentence;
  }

  /** @param {string} sentence */
  say(sentence) {
    this.status.say(sentence);
  }

  /** @type {Work["run"]} */
  work(what, job) {
    return this.status.run(what, job);
  }

  /** @param {unknown} error of a job @returns {boolean} whether the user is offered to try again */
  #fail(error) {
    this.trouble(sentenceOf(error));
    const isGone = error instanceof Unreachable;
    if (isGone) this.#recover(); // without being asked
    return !isGone;
  }

  /**
   * Wait for the server, then show again. Not for ever if the server is there: the request itself may be what ends the
   * connection.
   */
  async #recover() {
    if (this.isRecovering) return;
    this.isRecovering = true;
    for (let isReady = false; !isReady;) {
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      try {
        await send({ method: "GET", path: "models" }); // health may be on another port
        isReady = true;
      } catch (error) {
        this.trouble(sentenceOf(error));
      }
    }
    this.isRecovering = false;
    if (++this.unanswered <= MOST_UNANSWERED) await this.#begin();
    else {
      this.trouble("The server is there, but the connection ended before it answered this request.");
      this.status.offerAgain(true);
    }
  }

  async #copyLink() {
    const link = String(new URL(this.#link(), location.href));
    this.say((await copied(link)) ? "The link is copied." : `Copy it from the address bar: ${link}`);
  }

  async #save() {
    const blob = await snapshot(this.place);
    if (blob) download(blob, `visiontower-${this.tab.key}.png`);
    else this.say("This view is too large for one picture.");
  }
}

/** @param {string} hash the link's part behind the address */
function tabOf(hash) {
  const [key] = hash.slice(1).split("?");
  return TABS.find((each) => each.key === key);
}

/** @param {unknown} error */
function sentenceOf(error) {
  if (error instanceof Unreachable) {
    return `${error.message} It is asked again every ${RETRY_MS / 1000} seconds.`;
  }
  if (error instanceof Problem) return error.message;
  return `This page failed: ${error instanceof Error ? error.message : error}`;
}

new Page().start();
