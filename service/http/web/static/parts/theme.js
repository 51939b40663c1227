/** Light, dark, or as the system is. The choice is kept in this browser. */

import { byId } from "./dom.js";

const KEY = "visiontower-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark now. */
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : system.matches;
}

/** Show the theme chosen last, and let the button #theme switch it. Each change sends the window's event `themechange`. */
export function startTheme() {
  const button = byId("theme");
  const show = () => {
    button.textContent = isDark() ? "☀ Light" : "☾ Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    window.dispatchEvent(new Event("themechange"));
  };
  const kept = storage()?.getItem(KEY);
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
  show();
  button.hidden = false;
  system.addEventListener("change", show);
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    storage()?.setItem(KEY, theme);
    show();
  });
}

/** Null where the browser forbids it. */
function storage() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}
