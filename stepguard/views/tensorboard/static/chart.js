// One chart: lines of several runs over the same steps, zoom, cursor, keys.
import { done, KINDS } from "./drawing.js";
import { nearest, show, values } from "./hover.js";
import { exact, make, plural, short, whole } from "./page.js";
import { keys } from "./keys.js";
import { colour, dash, ink } from "./theme.js";

const DASHES = [[], [7, 4], [2, 3]]; // of the columns of one run

export class Chart {
  constructor(kind, app) {
    [this.kind, this.app] = [kind, app];
    this.count = make("span", { class: "count" });
    this.tip = make("div", { class: "tip", hidden: true });
    this.said = make("div", { class: "unseen", role: "status" });
    this.paper = make("div", { class: "paper" }, this.tip);
    const about = make("p", { id: `about-${kind.name}` }, kind.help, " ", this.columns(), this.count);
    this.element = make(
      "section",
      {
        class: kind.wide ? "chart wide" : "chart",
        id: `chart-${kind.name}`,
        tabindex: 0,
        role: "group",
        "aria-label": `Chart. ${kind.title}`,
        "aria-describedby": `about-${kind.name}`,
        "aria-keyshortcuts": "ArrowLeft ArrowRight + - Home End Escape",
        onkeydown: (event) => keys(event, this, app),
        onblur: () => this.plot?.setCursor({ left: -10, top: -10 }),
      },
      make("h2", {}, kind.title),
      about,
      this.paper,
      this.said,
    );
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.paper);
  }

  columns() {
    const labels = Object.values(this.kind.columns);
    if (labels.length === 1) return "";
    return make(
      "span",
      { class: "columns" },
      ...labels.map((label, i) => make("span", { class: `line line-${i}` }, label)),
    );
  }

  // Draws these runs; those without a value here have no line.
  draw(runs, anew) {
    const columns = Object.keys(this.kind.columns);
    const has = (run) => columns.some((name) => run.data.charts[this.kind.name][name].some((value) => value != null));
    this.runs = runs.filter((run) => has(run) || (this.kind.name === "r" && run.data.marks.length));
    this.element.hidden = !this.runs.length;
    if (this.element.hidden) return this.end();
    const tables = this.runs.map(({ data }) => {
      const table = data.charts[this.kind.name];
      return [table.step, ...columns.map((name) => table[name])];
    });
    const data = uPlot.join(tables);
    const key = this.runs.map((run) => run.name).join("\n");
    if (this.plot && this.key === key && !anew) return this.plot.setData(data);
    this.end();
    this.key = key;
    this.lines = this.runs.flatMap((run) =>
      columns.map((column, i) => ({
        run,
        column,
        label: this.kind.columns[column],
        dash: columns.length > 1 ? DASHES[i] : dash(run.number),
      })),
    );
    this.plot = new uPlot(this.options(), data, this.paper);
  }

  end() {
    this.plot?.destroy();
    this.plot = this.key = null;
    this.tip.hidden = true;
  }

  size() {
    return { width: Math.max(200, this.paper.clientWidth), height: this.kind.wide ? 270 : 190 };
  }

  options() {
    const axis = {
      stroke: () => ink("text"),
      grid: { stroke: () => ink("grid"), width: 1 },
      ticks: { stroke: () => ink("grid"), width: 1 },
    };
    const numbers = (u, splits) => splits.map((value) => (value == null ? "" : short(value)));
    return {
      ...this.size(),
      legend: { show: false },
      cursor: {
        dataIdx: nearest,
        drag: { x: true, y: false, setScale: false },
        sync: { key: "stepguard", scales: ["x", null] },
        bind: { dblclick: () => () => (this.app.reset(), null) },
      },
      scales: {
        x: { time: false, range: () => this.app.range() },
        y: { distr: this.kind.log ? 3 : 1, range: (u, low, high) => this.reach(low, high) },
      },
      axes: [
        { ...axis, values: (u, splits) => splits.map(whole), space: 70, size: 32 },
        { ...axis, values: numbers, size: 64 },
      ],
      series: [{}, ...this.lines.map((line) => this.line(line))],
      hooks: {
        drawAxes: [(u) => this.kind.behind?.(u, this.runs)],
        draw: [(u) => this.tell(this.kind.front?.(u, this.runs, this.app))],
        setSelect: [(u) => this.brushed(u)],
        setCursor: [(u) => show(this.tip, u, this.lines, (line) => this.mark(line))],
      },
    };
  }

  line({ run, dash }) {
    return {
      stroke: () => colour(run.number) + (this.app.faded(run) ? "30" : ""),
      width: 1.5,
      dash,
      spanGaps: true,
      points: {
        size: 4,
        show: (u, i, from, to) => u.data[i].filter((v, n) => n >= from && n <= to && v != null).length < 80,
      },
    };
  }

  // The scale: all values, and what the chart must show besides.
  reach(low, high) {
    const also = this.kind.reach?.(this.runs) ?? [];
    const all = [low, high, ...also].filter((value) => value != null && (!this.kind.log || value > 0));
    if (!all.length) return this.kind.log ? [0.1, 10] : [0, 1];
    [low, high] = [Math.max(Math.min(...all), this.kind.lowest ?? -Infinity), Math.max(...all)];
    if (this.kind.log) return [rounded(low / 1.2, -1), rounded(high * 1.2, 1)];
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    return [low === 0 ? 0 : low - room, high + room];
  }

  brushed(u) {
    const { left, width } = u.select;
    if (width < 3) return;
    const [low, high] = [u.posToVal(left, "x"), u.posToVal(left + width, "x")];
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.app.zoom(low, high);
  }

  mark({ run, column, step }) {
    if (column !== "r") return "";
    const found = run.data.marks.find((mark) => mark[0] === step);
    if (!found) return "";
    return done(found[2]) === "clamp" ? `, step × ${short(found[2])}` : `, ${KINDS[done(found[2])]}`;
  }

  tell(counts) {
    if (!counts) return;
    Object.assign(this.element.dataset, counts);
    const parts = Object.entries(KINDS).filter(([kind]) => counts[kind]);
    this.count.replaceChildren(
      ...(parts.length ? parts : [["none", "no step beyond the target"]]).map(([kind, label]) =>
        make("span", { class: `mark mark-${kind}` }, counts[kind] ? `${whole(counts[kind])} ${label}` : label),
      ),
    );
  }

  // Puts the cursor at a step, from the keyboard or from an event, and says what is there.
  point(step) {
    const u = this.plot;
    if (!u) return;
    u.setCursor({ left: u.valToPos(step, "x"), top: u.over.clientHeight / 2 });
    const found = values(u, this.lines).slice(0, 3);
    const text = found.map((line) => `${line.run.label} ${line.label} ${exact(line.value)}${this.mark(line)}`);
    this.said.textContent = `Step ${whole(step)}: ${text.join("; ") || plural(0, "value")}`;
  }
}

// To the next of 1, 2, 5, 10, ..., downwards or upwards.
function rounded(value, way) {
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = [1, 2, 5, 10].map((step) => Number((step * power).toPrecision(3)));
  return way < 0
    ? (steps.findLast((step) => step <= value) ?? steps[0])
    : (steps.find((step) => step >= value) ?? steps[3]);
}
