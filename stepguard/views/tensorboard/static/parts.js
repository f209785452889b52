// Where the r of a breach comes from: signed bars of nats, those of each table with the spread as their sum.
import { make, short } from "./page.js";

const TABLES = { layers: "Layers", groups: "Parameter groups", parameters: "Parameters" };

export function parts(found, id) {
  const tables = Object.keys(TABLES).filter((name) => found[name].length);
  const values = tables.flatMap((name) => found[name].map(([, nats]) => nats));
  // One scale for all: bars of different tables can be compared, and zero is at the same place.
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  return make(
    "div",
    { class: "parts", id, role: "group", "aria-label": "Where r comes from" },
    make("dl", {}, ...found.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
    make(
      "p",
      {},
      make("span", { class: "part apart" }, "pulls the two classes apart"),
      make("span", { class: "part together" }, "holds them together"),
    ),
    make("div", { class: "tables" }, ...tables.map((name) => table(TABLES[name], found[name], found.spread, low, high))),
  );
}

function table(caption, rows, spread, low, high) {
  const cells = (name, nats, bar) => [
    make("th", { scope: "row" }, name),
    make("td", { class: "bar" }, bar),
    make("td", {}, signed(nats)),
    make("td", {}, `${Math.round((100 * nats) / spread)}%`),
  ];
  return make(
    "table",
    {},
    make("caption", {}, caption),
    make(
      "thead",
      { class: "unseen" },
      make("tr", {}, ...["name", "bar", "nats", "share"].map((head) => make("th", { scope: "col" }, head))),
    ),
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
  return make("div", {}, box, zero);
}

const signed = (nats) => `${nats < 0 ? "−" : "+"}${short(Math.abs(nats))} nats`;
