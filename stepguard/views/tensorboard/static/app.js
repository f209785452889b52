// The page: which runs and which steps are looked at; asks for what is new every few seconds.
import { Chart } from "./chart.js";
import { Events } from "./events.js";
import { CHARTS } from "./kinds.js";
import { ask, make, plural, whole } from "./page.js";
import { Runs } from "./runs.js";
import { themeSwitch } from "./theme.js";

const EVERY = 5000; // milliseconds
const SOON = 250; // while there is more to read
const REST = 1000; // from one picture to the next meanwhile, at least: each takes time from reading

class App {
  constructor(body) {
    this.view = null; // the steps looked at; null is all of them
    this.lit = null; // the run that stands out while it is pointed at in the list
    this.runs = new Runs(
      () => this.refresh(),
      (run) => this.light(run),
    );
    this.charts = CHARTS.map((kind) => new Chart(kind, this));
    this.events = new Events(this);
    this.state = make("span", { role: "status" });
    this.steps = make("span", { id: "steps" });
    this.live = make("input", {
      type: "checkbox",
      checked: true,
      id: "live",
      onchange: () => this.live.checked && this.poll(),
    });
    this.all = make("button", { type: "button", id: "reset", onclick: () => this.reset() }, "All steps");
    const theme = themeSwitch(() => this.redraw());
    const bar = make("header", {}, this.steps, this.all, make("label", {}, this.live, " Live"), theme, this.state);
    this.empty = make("main", { id: "empty", hidden: true });
    this.full = make(
      "main",
      { id: "full", hidden: true },
      make("aside", { "aria-label": "Runs" }, this.runs.element),
      make("div", { id: "charts" }, ...this.charts.map((chart) => chart.element), this.events.element),
    );
    body.replaceChildren(bar, this.empty, this.full);
    document.addEventListener("visibilitychange", () => this.poll());
  }

  // Asks for the runs, then for what is new of those that are shown.
  async poll() {
    clearTimeout(this.timer);
    let every = EVERY;
    try {
      const found = await ask("runs");
      this.runs.take(found);
      this.empty.hidden = found.runs.length > 0;
      this.full.hidden = !this.empty.hidden;
      if (this.full.hidden) this.empty.replaceChildren(...hints(found.logdir));
      const rested = performance.now() - this.drawn >= Math.max(REST, 4 * this.took);
      if (found.read === 1 || rested || !this.drawn) await this.refresh();
      this.state.textContent = found.read < 1 ? `Reading, ${Math.floor(100 * found.read)}% done` : "";
      every = found.read < 1 ? SOON : EVERY;
    } catch (error) {
      this.state.textContent = `No answer (${error.message}); trying again.`;
    }
    clearTimeout(this.timer);
    if (this.live.checked && !document.hidden) this.timer = setTimeout(() => this.poll(), every);
  }

  async refresh() {
    const began = performance.now();
    const runs = this.runs.shown();
    const buckets = Math.round(Math.min(2000, Math.max(300, 4000 / Math.max(1, runs.length))));
    const view = this.view ? { from: this.view[0], to: this.view[1] } : {};
    const key = (run) => [run.about.version, view.from, view.to, buckets].join();
    const stale = runs.filter((run) => run.key !== key(run));
    if (stale.length) {
      const asked = this.view;
      const found = await ask("series", { run: stale.map((run) => run.name), ...view, buckets });
      if (asked !== this.view) return; // zoomed since: what was asked for then is on its way
      for (const run of stale) if (found[run.name]) Object.assign(run, { data: found[run.name], key: key(run) });
    }
    this.draw();
    await this.events.refresh();
    this.drawn = performance.now();
    this.took = this.drawn - began;
  }

  draw(anew = false) {
    const runs = this.runs.shown().filter((run) => run.data);
    for (const chart of this.charts) chart.draw(runs, anew);
    const small = this.charts.filter((chart) => !chart.element.hidden && !chart.kind.wide);
    small.forEach((chart, i) => chart.element.classList.toggle("last", i === small.length - 1 && i % 2 === 0));
    const [low, high] = this.range();
    this.steps.textContent = !runs.length ? "" : `steps ${whole(low)} to ${whole(high)}, ${plural(runs.length, "run")}`;
    this.all.disabled = !this.view;
  }

  redraw() {
    if (this.charts) this.draw(true);
    this.runs.paint();
  }

  light(run) {
    this.lit = run;
    for (const chart of this.charts) chart.plot?.redraw(false);
  }

  faded(run) {
    return this.lit !== null && this.lit !== run;
  }

  whole() {
    const runs = this.runs
      .shown()
      .map((run) => run.about)
      .filter((about) => about.last != null);
    return runs.length ? [Math.min(...runs.map((run) => run.first)), Math.max(...runs.map((run) => run.last))] : [0, 1];
  }

  range() {
    const [low, high] = this.view ?? this.whole();
    return high > low ? [low, high] : [low - 0.5, high + 0.5];
  }

  zoom(low, high) {
    const [first, last] = this.whole();
    [low, high] = [Math.max(low, first), Math.min(high, last)];
    if (this.view && low === this.view[0] && high === this.view[1]) return;
    this.view = high - low < 1 ? [Math.floor(low) - 0.5, Math.floor(low) + 1.5] : [low, high];
    if (low <= first && high >= last) this.view = null;
    this.draw(); // at once with what is there, then with all that there is
    clearTimeout(this.wait);
    this.wait = setTimeout(() => this.refresh().catch((error) => (this.state.textContent = error.message)), 120);
  }

  reset() {
    this.zoom(-Infinity, Infinity);
  }

  pan(share) {
    const [low, high] = this.range();
    const [first, last] = this.whole();
    const by = Math.min(Math.max((high - low) * share, first - low), last - high);
    this.zoom(low + by, high + by);
  }

  // To a step, with some around it: as many as are seen now, or a fiftieth of all.
  jump(step) {
    const [low, high] = this.range();
    const [first, last] = this.whole();
    const around = Math.min((high - low) / 2, Math.max(10, (last - first) / 50));
    this.zoom(step - around, step + around);
    for (const chart of this.charts) chart.point(step);
    this.charts[0].element.scrollIntoView({ block: "nearest" });
  }
}

function hints(logdir) {
  const line = (text) => make("pre", {}, text);
  return [
    make("h1", {}, "No StepGuard records yet"),
    make("p", {}, `Below ${logdir} no run has written any. This page fills by itself as soon as one does:`),
    make("p", {}, "in a training loop"),
    line('guard = stepguard.attach(model, optimizer, log_dir="runs/mine")'),
    make("p", {}, "in Lightning, or likewise in the Trainer of Hugging Face"),
    line("trainer = Trainer(callbacks=[StepGuard()])"),
    make("p", {}, "or, to see what it looks like"),
    line("stepguard demo"),
    make("p", {}, "If there are records elsewhere, point TensorBoard there: stepguard dashboard LOGDIR."),
  ];
}

export async function start(body) {
  const app = new App(body);
  window.stepguard = app; // for a look from the console
  await app.poll();
}
