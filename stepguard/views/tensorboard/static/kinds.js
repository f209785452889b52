// The charts there are: their columns as the server names them, their scale, and what is drawn behind the lines.
import { limit, marks, zone } from "./drawing.js";
import { short } from "./page.js";

const NATS = { float64: 53, float32: 24, float16: 11, bfloat16: 8 }; // bits after which a term is absorbed by 1

export const CHARTS = [
  {
    name: "r",
    title: "r: the step over its radius",
    help: "Safe below the target (shaded). Beyond it every step is marked.",
    columns: { r: "r" },
    log: true,
    wide: true,
    reach: (runs) => targets(runs).flatMap((target) => [target / 2, target * 2]),
    behind(u, runs) {
      if (targets(runs).length) zone(u, Math.min(...targets(runs)), "safe");
    },
    front(u, runs, app) {
      for (const target of targets(runs)) limit(u, target, `target ${short(target)}`);
      return marks(u, runs, app);
    },
  },
  {
    name: "lengths",
    title: "τ and ρ: the step's length, and its radius",
    help: "A step is safe while τ stays below ρ.",
    columns: { tau: "τ asked for", rho: "ρ radius" },
    log: true,
  },
  {
    name: "rates",
    title: "Learning rate",
    help: "Asked for, applied, and the largest that would have been safe.",
    columns: { lr: "asked", lr_applied: "applied", lr_safe: "safe up to" },
    log: true,
  },
  {
    name: "headroom",
    title: "Softmax headroom, nats",
    help: "Until the softmax of a sample absorbs all but one class. Below 0 it has.",
    columns: { headroom_nats: "one in a hundred", headroom_min: "first sample", headroom_median: "half" },
    reach: () => [0],
    lowest: -21, // how far beyond does not matter; float64's limit seen from float32 still is on the chart
    behind: (u) => zone(u, 0, "unsafe"),
    front(u, runs) {
      for (const dtype of dtypes(runs)) {
        limit(u, 0, dtype in NATS ? `collapse in ${dtype}` : "collapse");
        for (const other in NATS) {
          const nats = (NATS[dtype] - NATS[other]) * Math.LN2;
          if (other !== dtype && NATS[dtype])
            limit(u, nats, `would be in ${other}`, false, other === "float16" ? "left" : "right");
        }
      }
    },
  },
  {
    name: "shares",
    title: "Softmax collapse, share of samples",
    help: "Whose softmax sum is exactly 1, and whose loss is exactly 0.",
    columns: { collapse: "collapsed", zero_terms: "loss of 0" },
    reach: () => [0, 0.01],
  },
  {
    name: "alignment",
    title: "NLM alignment",
    help: "Cosine of −gradient with the weights: near 1 the model only scales its logits.",
    columns: { nlm_alignment: "alignment" },
    reach: () => [0, 1],
    front: (u) => limit(u, 0.7, "0.7: mostly scaling", false),
  },
  {
    name: "cost",
    title: "Cost: the guard's share of the time",
    help: "Since the reading before.",
    columns: { cost_share: "share" },
    reach: () => [0],
  },
  {
    name: "monitor-cost",
    title: "Cost: the collapse monitor's share of the time",
    help: "Of everything since the reading before.",
    columns: { cost_share: "share" },
    reach: () => [0],
  },
];

const distinct = (values) => [...new Set(values)].sort((a, b) => a - b);
const targets = (runs) => distinct(runs.flatMap((run) => run.data.targets));
const dtypes = (runs) => [...new Set(runs.map((run) => run.about.dtype).filter(Boolean))];
