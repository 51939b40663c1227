/** Narrows the operations, and the contents with them, to those in which all of the user's words are. */

import { byId, el } from "../parts/dom.js";

export function startFilter() {
  const operations = [...document.querySelectorAll(".operation")].map((section) => {
    const link = document.querySelector(`.contents a[href="#${section.querySelector("h3")?.id}"]`);
    return { shown: [section, link?.closest("li")], text: String(section.textContent).toLowerCase() };
  });
  const found = el("p", { class: "note", role: "status" });
  const narrow = () => {
    const words = field.value.toLowerCase().split(/\s+/);
    let count = 0;
    for (const { shown, text } of operations) {
      const fits = words.every((word) => text.includes(word));
      for (const each of shown) each?.toggleAttribute("hidden", !fits);
      if (fits) count += 1;
    }
    for (const group of document.querySelectorAll(".group")) {
      group.toggleAttribute("hidden", !group.querySelector(":is(.operation, li):not([hidden])"));
    }
    found.textContent = field.value.trim() && `${count} of ${operations.length} operations`;
  };
  const field = el("input", {
    type: "search",
    placeholder: "Filter by words",
    "aria-label": "Filter the operations by words",
    oninput: narrow,
  });
  byId("filter").append(field, found);
}
