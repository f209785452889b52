// A chart from the keyboard: arrows move the cursor, with Shift the view; + and - zoom; Escape shows everything.
const MOVES = { ArrowLeft: -1, ArrowRight: 1 };

export function keys(event, chart, app) {
  const u = chart.plot;
  if (!u || event.ctrlKey || event.metaKey || event.altKey) return;
  const [low, high] = app.range();
  const at = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null;
  const middle = at ?? (low + high) / 2;
  const steps = u.data[0].filter((step) => step >= low && step <= high);
  if (event.key in MOVES && event.shiftKey) app.pan(MOVES[event.key] * 0.25);
  else if (event.key in MOVES) chart.point(beside(steps, at, MOVES[event.key]));
  else if (event.key === "Home") chart.point(steps[0]);
  else if (event.key === "End") chart.point(steps.at(-1));
  else if (event.key === "+" || event.key === "=") app.zoom(middle - (middle - low) / 2, middle + (high - middle) / 2);
  else if (event.key === "-") app.zoom(middle - (middle - low) * 2, middle + (high - middle) * 2);
  else if (event.key === "Escape" || event.key === "0") app.reset();
  else return;
  event.preventDefault();
}

function beside(steps, at, move) {
  if (at == null) return steps.at(move > 0 ? 0 : -1);
  const index = steps.reduce((best, step, i) => (Math.abs(step - at) < Math.abs(steps[best] - at) ? i : best), 0);
  return steps[Math.min(Math.max(index + move, 0), steps.length - 1)];
}
