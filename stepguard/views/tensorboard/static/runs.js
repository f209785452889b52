// The list of runs: which are shown, in which colour, and how far they are.
import { make, plural, short, whole } from "./page.js";
import { colour, dash } from "./theme.js";

const SHOWN = 20; // at first

export class Runs {
  constructor(changed, pointed) {
    [this.changed, this.pointed] = [changed, pointed];
    this.all = new Map();
    this.filter = make("input", {
      type: "search",
      placeholder: "Filter runs",
      "aria-label": "Filter runs",
      oninput: () => this.paint(),
    });
    this.list = make("ul");
    const button = (label, on) => make("button", { type: "button", onclick: () => this.set(on) }, label);
    this.element = make(
      "div",
      {},
      make("h2", {}, "Runs"),
      this.filter,
      make("div", { class: "buttons" }, button("All", true), button("None", false)),
      this.list,
    );
  }

  // A run keeps its colour, whichever come after it.
  take({ runs: found, logdir }) {
    for (const about of found) {
      const label = about.name === "." ? logdir.split("/").at(-1) || logdir : about.name;
      const run = this.all.get(about.name) ?? {
        name: about.name,
        label,
        number: this.all.size,
        on: this.all.size < SHOWN,
      };
      run.about = about;
      this.all.set(about.name, run);
    }
    const names = new Set(found.map((about) => about.name));
    for (const name of this.all.keys()) if (!names.has(name)) this.all.delete(name);
    this.paint();
  }

  shown() {
    return [...this.all.values()].filter((run) => run.on);
  }

  set(on) {
    for (const run of this.matching()) run.on = on;
    this.paint();
    this.changed();
  }

  matching() {
    const text = this.filter.value.toLowerCase();
    return [...this.all.values()].filter((run) => run.label.toLowerCase().includes(text));
  }

  paint() {
    const focused = document.activeElement?.dataset?.run;
    this.list.replaceChildren(...this.matching().map((run) => this.item(run)));
    if (focused) this.list.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
  }

  item(run) {
    const { about } = run;
    const box = make("input", {
      type: "checkbox",
      "data-run": run.name,
      onchange: () => ((run.on = box.checked), this.changed()),
    });
    box.checked = run.on;
    const line = make("i", { class: "swatch line" });
    const style = dash(run.number).length ? (dash(run.number)[0] > 4 ? "dashed" : "dotted") : "solid";
    line.style.borderTop = `3px ${style} ${colour(run.number)}`;
    const far = [
      `step ${whole(about.last)}${about.ended ? ", ended" : ""}`,
      about.r == null ? null : `r ${short(about.r)}`,
      about.breaches ? `${whole(about.breaches)} beyond` : null,
    ];
    const told = about.notices.length
      ? make(
          "span",
          { class: "notice", title: about.notices.join("\n") },
          `⚠ ${plural(about.notices.length, "notice")}`,
        )
      : null;
    const events = { onmouseenter: () => this.pointed(run), onmouseleave: () => this.pointed(null) };
    return make(
      "li",
      events,
      make("label", { title: run.label }, box, line, make("span", { class: "name" }, run.label)),
      make("small", {}, far.filter(Boolean).join(" · ")),
      told,
    );
  }
}
