// Dark or light: as the system has it, until the reader chooses.

import { say } from "./words.js";

const STORED = "glmtune.theme";
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

let button;

/** Show the theme that was chosen before, and offer the other by a button. */
export function setTheme(offers) {
  button = offers;
  prefersDark.addEventListener("change", show);
  show();
}

/** Go over to the other theme, and remember it. */
export function switchTheme() {
  localStorage.setItem(STORED, isDark() ? "light" : "dark");
  show();
}

const isDark = () => (localStorage.getItem(STORED) ?? (prefersDark.matches ? "dark" : "light")) === "dark";

function show() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  say(button, isDark() ? "light" : "dark");
}
