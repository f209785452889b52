// Where the r of a breach comes from: signed bars of nats, those of each table with the spread as their sum.
import { make, short } from "./page.js";

const LEFT = "left over"; // as the server calls it
const TABLES = { layers: "Layers", groups: "Parameter groups", parameters: "Parameters" };

export function parts(found, id) {
  const values = Object.keys(TABLES).flatMap((name) => found[name].map(([, nats]) => nats));
  const left = found.parameters.some(([name]) => name === LEFT);
  // One scale for all: bars of different tables can be compared, and zero is at the same place.
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const drawn = (name) => (found[name].length ? table(TABLES[name], found[name], found.spread, low, high) : "");
  return make(
    "div",
    { class: "parts", id, role: "group", "aria-label": "Where r comes from" },
    make("dl", {}, ...found.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
    make(
      "p",
      {},
      make("span", { class: "part apart" }, "pulls the two classes apart"),
      make("span", { class: "part together" }, "holds them together"),
      left ? "Left over: where autograd is told of something else than the forward does, as by detach." : "",
    ),
    make(
      "div",
      { class: "tables" },
      ...[["layers", "groups"], ["parameters"]].map((names) => make("div", {}, ...names.map(drawn))),
    ),
  );
}

function table(caption, rows, spread, low, high) {
  const cells = (name, nats, bar) => [
    make("th", { scope: "row" }, name),
    make("td", {}, bar),
    make("td", {}, signed(nats, "+")),
    make("td", {}, `${signed(Math.round((100 * nats) / spread))}%`),
  ];
  const heads = [caption, "", "nats", "share"];
  return make(
    "table",
    {},
    make("colgroup", {}, ...["name", null, "nats", "share"].map((name) => make("col", { class: name }))),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make(head ? "th" : "td", head ? { scope: "col" } : {}, head)))),
    make("tbody", {}, ...rows.map(([name, nats]) => make("tr", {}, ...cells(name, nats, bar(nats, low, high))))),
    make("tfoot", {}, make("tr", {}, ...cells("together", spread, null))),
  );
}

function bar(nats, low, high) {
  const percent = (value) => `${(100 * value) / (high - low || 1)}%`;
  const box = make("div", { class: nats < 0 ? "together" : "apart", "aria-hidden": "true" });
  box.style.marginLeft = percent(Math.min(nats, 0) - low);
  box.style.width = percent(Math.abs(nats));
  const zero = make("i", { "aria-hidden": "true" });
  zero.style.left = percent(-low);
  return make("div", { class: "bar" }, box, zero);
}

const signed = (value, plus = "") => `${value < 0 ? "−" : plus}${short(Math.abs(value))}`;
