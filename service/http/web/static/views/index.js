/** The views, in the order of their tabs. Each is loaded when it is opened first. */

/**
 * @import {Page, View} from "./view.js"
 *
 * @typedef {Object} Tab
 * @property {string} key in the link
 * @property {string} title for people
 * @property {() => Promise<new (page: Page) => View>} load
 */

/** @type {Tab[]} */
export const TABS = [
  { key: "tokens", title: "Tokens", load: async () => (await import("./tokens/view.js")).TokensView },
  { key: "texts", title: "Texts", load: async () => (await import("./texts/view.js")).TextsView },
  { key: "match", title: "Match", load: async () => (await import("./match/view.js")).MatchView },
  { key: "search", title: "Search", load: async () => (await import("./search/view.js")).SearchView },
  { key: "cost", title: "Cost", load: async () => (await import("./cost/view.js")).CostView },
  { key: "live", title: "Live", load: async () => (await import("./live/view.js")).LiveView },
];
