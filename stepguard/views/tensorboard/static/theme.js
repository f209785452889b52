// Light and dark: TensorBoard's own choice, the system's where that cannot be seen, or the user's.
import { make } from "./page.js";

// Okabe and Ito's colours, which every kind of colour vision tells apart, for white and for black paper.
const PALETTE = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87D00", "#56B4E9", "#333333"],
  dark: ["#56B4E9", "#FF8A4C", "#2BCFA0", "#E79AC4", "#E69F00", "#F0E442", "#DDDDDD"],
};
const DASHES = [[], [10, 4], [2, 3]]; // with these the colours begin anew

export const colour = (number) => PALETTE[current()][number % PALETTE.light.length];
export const dash = (number) => DASHES[Math.floor(number / PALETTE.light.length) % DASHES.length];
export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const current = () => document.documentElement.dataset.theme;

export function themeSwitch(changed) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const around = parentBody();
  const select = make(
    "select",
    { id: "theme", onchange: () => (localStorage.setItem("stepguard-theme", select.value), apply()) },
    ...["auto", "light", "dark"].map((name) => make("option", { value: name }, name)),
  );
  select.value = localStorage.getItem("stepguard-theme") || "auto";
  function apply() {
    const dark = around ? around.classList.contains("dark-mode") : system.matches;
    const theme = select.value === "auto" ? (dark ? "dark" : "light") : select.value;
    if (theme === current()) return;
    document.documentElement.dataset.theme = theme;
    changed();
  }
  system.addEventListener("change", apply);
  if (around) new MutationObserver(apply).observe(around, { attributeFilter: ["class"] });
  apply();
  return make("label", {}, "Theme ", select);
}

function parentBody() {
  try {
    const body = window.parent === window ? null : window.parent.document.body;
    return body && body.querySelector("tb-webapp, app-header") ? body : null;
  } catch {
    return null; // shown inside a page of somebody else
  }
}
