// Draws the charts of a report from the data that is in the page. What drawing.js imports in the tab is here.
const PALETTE = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87D00"],
  dark: ["#56B4E9", "#FF8A4C", "#2BCFA0", "#E79AC4", "#E69F00"],
};
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2]];
const DONE = { breach: "▲ let through", clamp: "○ shortened", withheld: "■ withheld", unknown: "◆ not known" };
const data = JSON.parse(document.getElementById("data").textContent);
const system = matchMedia("(prefers-color-scheme: dark)");
const plots = [];
let theme;
let drawing = 0;

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const colour = (number) => PALETTE[theme][number % PALETTE.light.length];

function short(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

// To the next of 1, 2, 5, 10, ..., downwards or upwards.
function rounded(value, way) {
  const power = 10 ** Math.floor(Math.log10(value) + 1e-9);
  const steps = [1, 2, 5, 10].map((step) => Number((step * power).toPrecision(3)));
  return way < 0 ? (steps.findLast((step) => step <= value) ?? steps[0]) : (steps.find((step) => step >= value) ?? steps[3]);
}

// The scale: all values, and what the chart must show besides.
function reach(picture, low, high) {
  const numbers = (picture.marks ?? []).map((mark) => mark[1]).filter((r) => typeof r === "number");
  const all = [low, high, ...(picture.reach ?? []), ...numbers].filter((v) => v != null && (!picture.log || v > 0));
  if (!all.length) return picture.log ? [0.1, 10] : [0, 1];
  [low, high] = [Math.max(Math.min(...all), picture.lowest ?? -Infinity), Math.max(...all)];
  if (picture.log) return [rounded(low / 1.2, -1), rounded(high * 1.2, 1)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - room, high + room];
}

// A line at the step that the report is about, and above it what it is.
function note(u, { step, text }) {
  const x = u.valToPos(step, "x", true);
  const { left, top, width, height } = u.bbox;
  if (!(x >= left && x <= left + width)) return;
  const { ctx } = u;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = ink("strong");
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  ctx.beginPath();
  ctx.moveTo(x, top);
  ctx.lineTo(x, top + height);
  ctx.stroke();
  ctx.setLineDash([]);
  ctx.font = `${11 * devicePixelRatio}px ${getComputedStyle(document.body).fontFamily}`;
  const room = ctx.measureText(text).width;
  ctx.textAlign = x + room < left + width ? "left" : "right";
  ctx.textBaseline = "bottom";
  ctx.fillText(text, x, top - 3 * devicePixelRatio);
  ctx.restore();
}

function front(u, picture, figure) {
  for (const { value, label, faint, side } of picture.limits ?? []) limit(u, value, label, !faint, side ?? "right");
  if (picture.note) note(u, picture.note);
  if (!picture.marks) return;
  const counts = marks(u, [{ data: picture, number: 0 }], { faded: () => false });
  const told = Object.entries(DONE).filter(([kind]) => counts[kind]);
  Object.assign(figure.dataset, counts);
  figure.querySelector(".count").textContent = told.map(([kind, words]) => `${counts[kind].toLocaleString("en")} ${words}`).join("  ");
}

function options(picture, figure, paper) {
  const axis = { stroke: ink("text"), grid: { stroke: ink("grid"), width: 1 }, ticks: { stroke: ink("grid"), width: 1 } };
  // Over many decades only whole ones have a line.
  const decades = (u, splits) => {
    const far = picture.log && u.scales.y.max / u.scales.y.min > 1e4;
    return splits.map((value) => (far && Math.abs(Math.log10(value) % 1) > 1e-9 ? null : value));
  };
  const numbers = (u, splits) => splits.map((value) => (value == null ? "" : short(value)));
  return {
    width: Math.max(200, paper.clientWidth),
    height: picture.wide ? 280 : 220,
    padding: [picture.note ? 20 : 8, 18, 0, 0],
    legend: { live: true, markers: { width: 2 } },
    cursor: { drag: { x: true, y: false }, points: { size: 6 } },
    scales: {
      x: { time: false },
      y: { distr: picture.log ? 3 : 1, range: (u, low, high) => reach(picture, low, high) },
    },
    axes: [
      { ...axis, values: (u, splits) => splits.map((v) => (Number.isInteger(v) ? v.toLocaleString("en") : "")), space: 70, size: 32 },
      { ...axis, grid: { ...axis.grid, filter: decades }, ticks: { ...axis.ticks, filter: decades }, values: numbers, size: 62 },
    ],
    series: [
      { label: "step", value: (u, v) => (v == null ? "–" : v.toLocaleString("en")) },
      ...picture.lines.map(({ label }, i) => ({
        label,
        stroke: colour(i),
        width: i === 0 ? 2 : 1.5,
        dash: DASHES[i % DASHES.length],
        spanGaps: true,
        value: (u, v) => short(v),
        points: { size: 4, show: Boolean(picture.points) || picture.step.length < 80 },
      })),
    ],
    hooks: {
      drawAxes: [(u) => (picture.zones ?? []).forEach(({ value, name }) => zone(u, value, name))],
      draw: [(u) => front(u, picture, figure)],
    },
  };
}

// All charts anew; of many only some at a time, so that the page can be read meanwhile. Paper does not wait.
async function draw(atOnce = false) {
  theme = document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
  const mine = ++drawing;
  plots.splice(0).forEach((plot) => plot.destroy());
  for (const [i, figure] of document.querySelectorAll("figure.chart").entries()) {
    if (i % 20 === 19 && !atOnce) await new Promise((go) => setTimeout(go));
    if (mine !== drawing) return;
    const picture = data[figure.dataset.run][figure.dataset.chart];
    const paper = figure.querySelector(".paper");
    plots.push(new uPlot(options(picture, figure, paper), [picture.step, ...picture.lines.map((line) => line.values)], paper));
  }
}

for (const figure of document.querySelectorAll("figure.chart")) {
  figure.querySelector("figcaption").append(Object.assign(document.createElement("span"), { className: "count" }));
}
draw();
system.addEventListener("change", () => draw());
const fit = () => plots.forEach((plot) => plot.setSize({ width: Math.max(200, plot.root.parentNode.clientWidth), height: plot.height }));
addEventListener("resize", fit);
// Paper is white, and has its own width.
addEventListener("beforeprint", () => ((document.documentElement.dataset.theme = "light"), draw(true)));
addEventListener("afterprint", () => (delete document.documentElement.dataset.theme, draw()));
window.stepguardReport = { plots, data };
