// The values under the cursor, in full; the nearest ones first where there are many.
import { exact, make, short, whole } from "./page.js";
import { colour } from "./theme.js";

const MOST = 8;

// Of each line the point nearest to the cursor: with several runs few steps have a value of all.
export function nearest(u, series, index) {
  const [steps, column] = [u.data[0], u.data[series]];
  if (series === 0 || column[index] != null) return index;
  const at = steps[index];
  let [low, high] = [index, index];
  while (low >= 0 && column[low] == null) low--;
  while (high < steps.length && column[high] == null) high++;
  if (low < 0) return high < steps.length ? high : null;
  return high < steps.length && steps[high] - at < at - steps[low] ? high : low;
}

export function values(u, lines) {
  const top = u.cursor.top;
  return lines
    .map((line, number) => {
      const index = u.cursor.idxs[number + 1];
      const value = index == null ? null : u.data[number + 1][index];
      return value == null
        ? null
        : { ...line, value, step: u.data[0][index], far: Math.abs(u.valToPos(value, "y") - top) };
    })
    .filter(Boolean)
    .sort((a, b) => a.far - b.far);
}

// Fills the tooltip: in full where the cursor or the keyboard is, in short on the charts that follow.
export function show(tip, u, lines, marked) {
  const found = u.cursor.left < 0 ? [] : values(u, lines);
  const here = u.over.matches(":hover") || document.activeElement === tip.closest("section");
  tip.hidden = !found.length || (!here && found.length > 4);
  if (tip.hidden) return;
  const at = found[0].step;
  tip.replaceChildren(
    make("b", {}, `step ${whole(at)}`),
    ...found.slice(0, MOST).map((line) => row(line, at, here ? exact : short, marked(line))),
    found.length > MOST ? make("div", {}, `and ${found.length - MOST} more`) : "",
  );
  const { left, top } = u.cursor;
  const right = left > u.over.clientWidth / 2;
  const low = top < u.over.clientHeight / 2;
  tip.style.left = right ? "" : `${u.over.offsetLeft + left + 14}px`;
  tip.style.right = right ? `${u.root.clientWidth - u.over.offsetLeft - left + 14}px` : "";
  tip.style.top = low ? "" : "8px";
  tip.style.bottom = low ? "40px" : "";
}

function row(line, at, form, mark) {
  const swatch = make("i", { class: "swatch" });
  swatch.style.background = colour(line.run.number);
  const where = line.step === at ? "" : ` at ${whole(line.step)}`;
  return make("div", {}, swatch, `${line.run.label} ${line.label} `, make("b", {}, form(line.value)), where + mark);
}
