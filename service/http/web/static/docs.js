/** The page /docs: a filter for its contents, and a form that runs for each operation of openapi.json. */

import { onKeyNeeded, send } from "./api/call.js";
import { startFilter } from "./docs/filter.js";
import { tryOut } from "./docs/try-out.js";
import { byId, el } from "./parts/dom.js";
import { keyFromUser } from "./parts/key-dialog.js";
import { startTheme } from "./parts/theme.js";

const NARROW = matchMedia("(width < 60rem)");

startTheme();
onKeyNeeded(keyFromUser);
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
  const [schema, served] = await Promise.all([
    send({ method: "GET", path: "openapi.json" }).then((response) => response.json()),
    servedIds().catch(() => []), // the forms work without: the ids are suggested
  ]);
  document.body.append(el("datalist", { id: "served" }, ...served.map((value) => el("option", { value }))));
  for (const section of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".operation"))) {
    const { method = "", path = "" } = section.dataset;
    const form = tryOut({ method, path, ...schema.paths[path][method] }, served[0] ?? "");
    section.querySelector(".about")?.after(form);
  }
}

/** @returns {Promise<string[]>} ids of encoders, the default first */
async function servedIds() {
  const { data } = await (await send({ method: "GET", path: "models" })).json();
  return data.map((/** @type {{id: string}} */ model) => model.id);
}
