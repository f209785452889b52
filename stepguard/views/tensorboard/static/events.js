// The table of events: by kind, by words, and from each to its step in the charts.
import { ask, make, whole } from "./page.js";
import { colour } from "./theme.js";

const PAGE = 200;

export class Events {
  constructor(app) {
    this.app = app;
    this.kinds = new Set();
    this.limit = PAGE;
    this.text = make("input", {
      type: "search",
      placeholder: "Search messages",
      "aria-label": "Search messages",
      oninput: () => this.changed(),
    });
    this.within = make("input", { type: "checkbox", onchange: () => this.changed() });
    this.chips = make("div", { class: "chips", role: "group", "aria-label": "Kinds of events" });
    this.total = make("p", { role: "status", class: "total" });
    this.rows = make("tbody", { onkeydown: (event) => move(event) });
    this.more = make(
      "button",
      { type: "button", hidden: true, onclick: () => ((this.limit += 5 * PAGE), this.refresh(true)) },
      "Show more",
    );
    const heads = ["step", "run", "kind", "what happened", "when"].map((head) => make("th", { scope: "col" }, head));
    this.element = make(
      "section",
      { id: "events", "aria-label": "Events" },
      make("h2", {}, "Events"),
      make(
        "div",
        { class: "filters" },
        this.chips,
        this.text,
        make("label", {}, this.within, " only the steps in view"),
      ),
      this.total,
      make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), this.rows)),
      this.more,
    );
  }

  changed() {
    this.limit = PAGE;
    this.refresh(true).catch((error) => (this.total.textContent = error.message));
  }

  async refresh(anew = false) {
    const runs = this.app.runs.shown();
    const view = this.within.checked && this.app.view ? { from: this.app.view[0], to: this.app.view[1] } : {};
    const key = JSON.stringify([runs.map((run) => [run.name, run.about.version]), view]);
    if (key === this.key && !anew) return;
    const asked = (this.asked = Symbol());
    const found = await ask("events", {
      run: runs.map((run) => run.name),
      kind: [...this.kinds],
      text: this.text.value,
      limit: this.limit,
      ...view,
    });
    if (asked !== this.asked) return;
    this.key = key;
    this.paint(found);
  }

  paint({ counts, total, events }) {
    const kinds = [...new Set([...Object.keys(counts), ...this.kinds])].sort();
    const focused = document.activeElement?.dataset;
    const [kind, jump] = [focused?.kind, focused?.jump];
    this.chips.replaceChildren(...kinds.map((kind) => this.chip(kind, counts[kind] ?? 0)));
    this.total.textContent =
      total > events.length ? `The latest ${whole(events.length)} of ${whole(total)} events` : `${whole(total)} events`;
    this.rows.replaceChildren(...events.map((event) => this.row(event)));
    this.more.hidden = total <= events.length;
    if (kind) this.chips.querySelector(`[data-kind="${CSS.escape(kind)}"]`)?.focus();
    if (jump) this.rows.querySelector(`[data-jump="${CSS.escape(jump)}"]`)?.focus();
  }

  chip(kind, count) {
    const toggle = () => {
      if (!this.kinds.delete(kind)) this.kinds.add(kind);
      this.changed();
    };
    const pressed = String(this.kinds.has(kind));
    return make(
      "button",
      { type: "button", "data-kind": kind, "aria-pressed": pressed, onclick: toggle },
      `${kind} ${whole(count)}`,
    );
  }

  row(event) {
    const run = this.app.runs.all.get(event.run);
    const swatch = make("i", { class: "swatch" });
    swatch.style.background = colour(run?.number ?? 0);
    const jump = {
      type: "button",
      "data-jump": `${event.run} ${event.step} ${event.kind}`,
      title: "Show this step in the charts",
      onclick: () => this.app.jump(event.step),
    };
    const when = event.time ? new Date(event.time * 1000).toLocaleString() : "";
    return make(
      "tr",
      {},
      make("td", {}, make("button", jump, whole(event.step))),
      make("td", { class: "name" }, swatch, run?.label ?? event.run),
      make("td", {}, event.kind),
      make("td", {}, event.message),
      make("td", {}, when),
    );
  }
}

// Up and down from one event's button to the next.
function move(event) {
  const by = { ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling" }[event.key];
  const other = by && event.target.closest("tr")?.[by]?.querySelector("button");
  if (!other) return;
  other.focus();
  event.preventDefault();
}
