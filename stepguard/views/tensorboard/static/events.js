// The table of events: by kind, by words, and from each to its step in the charts.
import { ask, make, whole } from "./page.js";
import { parts } from "./parts.js";
import { colour } from "./theme.js";

const PAGE = 200;

export class Events {
  constructor(app) {
    this.app = app;
    this.kinds = new Set();
    this.limit = PAGE;
    this.open = new Set(); // keys of those that are folded out
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
    const [kind, jump, fold] = [focused?.kind, focused?.jump, focused?.fold];
    this.chips.replaceChildren(...kinds.map((kind) => this.chip(kind, counts[kind] ?? 0)));
    this.total.textContent =
      total > events.length ? `The latest ${whole(events.length)} of ${whole(total)} events` : `${whole(total)} events`;
    this.rows.replaceChildren(...events.flatMap((event) => this.row(event)));
    this.more.hidden = total <= events.length;
    if (kind) this.chips.querySelector(`[data-kind="${CSS.escape(kind)}"]`)?.focus();
    if (jump) this.rows.querySelector(`[data-jump="${CSS.escape(jump)}"]`)?.focus();
    if (fold) this.rows.querySelector(`[data-fold="${CSS.escape(fold)}"]`)?.focus();
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
    const key = `${event.run} ${event.step} ${event.kind}`;
    const jump = {
      type: "button",
      "data-jump": key,
      title: "Show this step in the charts",
      onclick: () => this.app.jump(event.step),
    };
    const when = event.time ? new Date(event.time * 1000).toLocaleString() : "";
    const row = make(
      "tr",
      {},
      make("td", {}, make("button", jump, whole(event.step))),
      make("td", { class: "name" }, swatch, run?.label ?? event.run),
      make("td", {}, event.kind),
      make("td", {}, event.message),
      make("td", {}, when),
    );
    return event.parts ? [row, this.fold(row, key, event.parts)] : [row];
  }

  // The row below with the numbers, and the button that shows it.
  fold(row, key, found) {
    const id = `parts-${key.replace(/[^a-zA-Z0-9]/g, "-")}`;
    const below = make("tr", { class: "fold" }, make("td", { colspan: 5 }));
    const button = make("button", {
      type: "button",
      class: "unfold",
      "data-fold": key,
      "aria-controls": id,
      onclick: () => {
        if (!this.open.delete(key)) this.open.add(key);
        show();
      },
    });
    const show = () => {
      const open = this.open.has(key);
      button.setAttribute("aria-expanded", open);
      button.textContent = `${open ? "▾" : "▸"} nat by nat`;
      below.hidden = !open;
      below.cells[0].replaceChildren(...(open ? [parts(found, id)] : []));
    };
    show();
    row.cells[3].append(" ", button);
    return below;
  }
}

// Up and down from one event's button to the next.
function move(event) {
  const by = { ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling" }[event.key];
  let row = by && event.target.closest("tr")?.[by];
  while (row && !row.querySelector("[data-jump]")) row = row[by];
  const other = row?.querySelector("button");
  if (!other) return;
  other.focus();
  event.preventDefault();
}
