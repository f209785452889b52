// What is drawn on a chart besides its lines: zones, limits, and a mark for every step beyond its target.
import { colour, ink } from "./theme.js";

export const KINDS = { breach: "let through", clamp: "shortened", withheld: "withheld", unknown: "beyond, nobody tells what was done" };

// Shades from the value down to the bottom, or to the top.
export function zone(u, value, name, upwards = false) {
  const edge = clip(u, u.valToPos(value, "y", true));
  const { left, top, width, height } = u.bbox;
  u.ctx.save();
  u.ctx.fillStyle = ink(name);
  if (upwards) u.ctx.fillRect(left, top, width, edge - top);
  else u.ctx.fillRect(left, edge, width, top + height - edge);
  u.ctx.restore();
}

// A labelled line across; none where it would lie outside.
export function limit(u, value, label, strong = true, side = "right") {
  const y = u.valToPos(value, "y", true);
  const { left, top, width, height } = u.bbox;
  if (!(y >= top && y <= top + height)) return;
  const { ctx } = u;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = ink(strong ? "limit" : "faint");
  ctx.lineWidth = devicePixelRatio * (strong ? 1.5 : 1);
  ctx.setLineDash(strong ? [] : [4, 4]);
  ctx.beginPath();
  ctx.moveTo(left, y);
  ctx.lineTo(left + width, y);
  ctx.stroke();
  ctx.font = `${11 * devicePixelRatio}px ${getComputedStyle(document.body).fontFamily}`;
  ctx.textAlign = side;
  ctx.textBaseline = y - top < 16 * devicePixelRatio ? "top" : "bottom";
  const x = side === "right" ? left + width - 6 * devicePixelRatio : left + 6 * devicePixelRatio;
  const base = y + (ctx.textBaseline === "top" ? 3 : -2) * devicePixelRatio;
  ctx.setLineDash([]);
  ctx.strokeStyle = ink("paper"); // so that it can be read over lines
  ctx.lineWidth = 3 * devicePixelRatio;
  ctx.strokeText(label, x, base);
  ctx.fillText(label, x, base);
  ctx.restore();
}

// Marks what was beyond its target; what is no number stands at the upper edge. Returns how many of each kind.
export function marks(u, runs, app) {
  const counts = { breach: 0, clamp: 0, withheld: 0, unknown: 0 };
  const { left, top, width } = u.bbox;
  const size = 4 * devicePixelRatio;
  u.ctx.save();
  u.ctx.beginPath();
  u.ctx.rect(left - size, top - size, width + 2 * size, u.bbox.height + 2 * size);
  u.ctx.clip();
  for (const run of runs) {
    const paths = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, new Path2D()]));
    for (const [step, r, scale, count] of run.data.marks) {
      const x = u.valToPos(step, "x", true);
      const kind = done(scale);
      counts[kind] += count;
      if (x < left || x > left + width) continue;
      const y = typeof r === "number" ? clip(u, u.valToPos(r, "y", true)) : top + size;
      SHAPES[kind](paths[kind], x, y, size);
    }
    u.ctx.strokeStyle = u.ctx.fillStyle = colour(run.number);
    u.ctx.globalAlpha = app.faded(run) ? 0.2 : 1;
    u.ctx.lineWidth = 1.5 * devicePixelRatio;
    u.ctx.setLineDash([]); // the lines below leave theirs behind
    u.ctx.fill(paths.breach);
    u.ctx.fill(paths.withheld);
    u.ctx.fillStyle = ink("paper");
    u.ctx.fill(paths.clamp);
    u.ctx.stroke(paths.clamp);
    u.ctx.fill(paths.unknown);
    u.ctx.stroke(paths.unknown);
  }
  u.ctx.restore();
  return counts;
}

// What was done about a step: by what it was multiplied; in a run of scalars that may not be known.
export function done(scale) {
  if (typeof scale !== "number") return "unknown";
  return scale === 0 ? "withheld" : scale === 1 ? "breach" : "clamp";
}

const SHAPES = {
  breach(path, x, y, size) {
    path.moveTo(x, y - size);
    path.lineTo(x + size, y + size * 0.8);
    path.lineTo(x - size, y + size * 0.8);
    path.closePath();
  },
  clamp(path, x, y, size) {
    path.moveTo(x + size * 0.8, y);
    path.arc(x, y, size * 0.8, 0, 2 * Math.PI);
  },
  unknown(path, x, y, size) {
    path.moveTo(x, y - size);
    path.lineTo(x + size, y);
    path.lineTo(x, y + size);
    path.lineTo(x - size, y);
    path.closePath();
  },
  withheld(path, x, y, size) {
    path.rect(x - size * 0.8, y - size * 0.8, size * 1.6, size * 1.6);
  },
};

const clip = (u, y) => Math.min(Math.max(y, u.bbox.top), u.bbox.top + u.bbox.height);
