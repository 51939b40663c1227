/** The page /docs: a filter for its contents, and a form that runs for each operation of openapi.json. */

import { send } from "./api/call.js";
import { served } from "./api/models.js";
import { startFilter } from "./docs/filter.js";
import { tryOut } from "./docs/try-out.js";
import { byId, el } from "./parts/dom.js";
import { startKey } from "./parts/key.js";
import { startTheme } from "./parts/theme.js";

const NARROW = matchMedia("(width < 60rem)");

startTheme();
startKey();
startContents();
startFilter();
await addForms().catch((error) => byId("main").prepend(el("p", { class: "problem", role: "alert" }, error.message)));
document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView(); // the forms moved it

/** On a phone the contents are closed, and close again behind a chosen operation. */
function startContents() {
  const contents = /** @type {HTMLDetailsElement} */ (document.querySelector(".contents details"));
  const fit = () => (contents.open = !NARROW.matches);
  NARROW.addEventListener("change", fit);
  contents.addEventListener("click", ({ target }) => target instanceof Element && target.closest("a") && fit());
  fit();
}

async function addForms() {
  const [schema, { models }] = await Promise.all([
    send({ method: "GET", path: "openapi.json" }).then((response) => response.json()),
    served().catch(() => ({ models: [] })), // the forms work without: the ids are suggested
  ]);
  document.body.append(el("datalist", { id: "served" }, ...models.map(({ id: value }) => el("option", { value }))));
  for (const section of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".operation"))) {
    const { method = "", path = "" } = section.dataset;
    const form = tryOut({ method, path, ...schema.paths[path][method] }, models[0]?.id ?? "");
    section.querySelector(".about")?.after(form);
  }
}
