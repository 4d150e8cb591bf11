// The settings of the page: defaults, presets, their form in the address, and as Python and as a command.
import { caseOf, hasMean, isAdaptive } from "./engine.js";
import { pythonNumber, rescale } from "./scaling.js";

export const OPTIMIZERS = {
  sgd: "SGD",
  momentum: "Momentum",
  signsgd: "SignSGD",
  signum: "Signum",
  lion: "Lion",
  rmspropw: "RMSpropW",
  adamw: "AdamW",
};
export const NOISES = { gaussian: "normal", laplace: "Laplace", "student-t": "Student t" };

const CLASSES = OPTIMIZERS;
const LAWS = { gaussian: "GaussianNoise", laplace: "LaplaceNoise", "student-t": "StudentTNoise" };

export const DEFAULTS = {
  dim: 2,
  curvature: [1, 5],
  angle: 0,
  start: [2.4, 1.8],
  noise: { name: "gaussian", scale: [1, 1], df: 3 },
  optimizer: {
    name: "adamw",
    lr: 0.02,
    b1: 0.9,
    b2: 0.99,
    eps: 1e-8,
    weight_decay: 0.1,
    v0: "zero",
    nesterov: false,
  },
  steps: 300,
  substeps: 1,
  ratio: 1,
  view: "whole",
};

const preset = (title, text, changes) => ({ title, text, changes });

export const PRESETS = [
  preset(
    "Adam and its earlier SDE",
    "The earlier SDE leaves the gradient out of V. Far from the minimum, where the gradient is larger than the noise, " +
      "its steps are too long.",
    {},
  ),
  preset(
    "Cauchy noise",
    "SignSGD needs no variance, and not even a mean, of the noise: its SDE and the closure hold for Cauchy noise.",
    {
      noise: { name: "student-t", df: 1, scale: [1, 1] },
      optimizer: { name: "signsgd", lr: 0.02, weight_decay: 0 },
      curvature: [1, 4],
      angle: 20,
      steps: 400,
    },
  ),
  preset(
    "the three phases",
    "SignSGD first moves as if there were no noise (phase 1), and in the end linearly in the gradient (phase 3). The " +
      "lines in the landscape are where |Y| = 3/2 and 1.",
    {
      optimizer: { name: "signsgd", lr: 0.02, weight_decay: 0 },
      curvature: [1, 2],
      start: [3.2, 2.4],
      noise: { scale: [0.8, 1.2] },
      steps: 350,
    },
  ),
  preset(
    "large decay",
    "Decoupled weight decay pulls to 0 at its own rate, whatever the noise: it bounds the loss at rest as the noise grows.",
    { optimizer: { weight_decay: 3 }, noise: { scale: [4, 4] }, curvature: [0.5, 2], steps: 300 },
  ),
  preset(
    "resolved or not",
    "With 8 substeps the SDE itself is solved, not the scheme at Δt = η. The equation of AdamW leaves out the share of X " +
      "in the noise of the new M, so its loss at rest is too low.",
    { substeps: 8, optimizer: { lr: 0.03, weight_decay: 0 }, start: [0.5, 0.3], curvature: [1, 4], steps: 400 },
  ),
];

/** Settings with changes, one level deep. */
export function changed(settings, changes) {
  const next = structuredClone(settings);
  for (const [key, value] of Object.entries(changes ?? {})) {
    if (value && typeof value === "object" && !Array.isArray(value)) Object.assign(next[key], value);
    else next[key] = Array.isArray(value) ? value.slice() : value;
  }
  return next;
}

// ── In the address ─────────────────────────────────────────────────────────────────────────────────────────────────

const PLACES = {
  o: ["optimizer", "name"],
  lr: ["optimizer", "lr"],
  b1: ["optimizer", "b1"],
  b2: ["optimizer", "b2"],
  eps: ["optimizer", "eps"],
  wd: ["optimizer", "weight_decay"],
  v0: ["optimizer", "v0"],
  nesterov: ["optimizer", "nesterov"],
  n: ["noise", "name"],
  s: ["noise", "scale"],
  df: ["noise", "df"],
  d: ["dim"],
  h: ["curvature"],
  a: ["angle"],
  x: ["start"],
  k: ["steps"],
  sub: ["substeps"],
  batch: ["ratio"],
  view: ["view"],
};
const inPlace = (settings, path) => path.reduce((part, key) => part[key], settings);

/** What differs from the defaults, as text for the address. */
export function toHash(settings) {
  const parts = [];
  for (const [key, path] of Object.entries(PLACES)) {
    const value = inPlace(settings, path);
    if (String(value) !== String(inPlace(DEFAULTS, path))) parts.push(`${key}=${encodeURIComponent(String(value))}`);
  }
  return parts.join("&");
}

/** Settings from the text of an address; what cannot be read, or is out of range, is ignored. */
export function fromHash(text) {
  const settings = structuredClone(DEFAULTS);
  for (const [key, value] of new URLSearchParams(text)) {
    const path = PLACES[key];
    if (!path) continue;
    const old = inPlace(settings, path);
    const owner = path.length === 2 ? settings[path[0]] : settings;
    const last = path.at(-1);
    if (Array.isArray(old)) {
      const numbers = value.split(",").map(Number);
      if (numbers.length >= 1 && numbers.every(Number.isFinite)) owner[last] = [numbers[0], numbers[1] ?? numbers[0]];
    } else if (typeof old === "number") {
      if (value !== "" && Number.isFinite(Number(value))) owner[last] = Number(value);
    } else if (typeof old === "boolean") owner[last] = value === "true";
    else owner[last] = value;
  }
  return legal(settings);
}

const within = (value, low, high) => Math.min(Math.max(value, low), high);

/** Settings with every number in its range and every name known. */
export function legal(settings) {
  const s = structuredClone(settings);
  const o = s.optimizer;
  if (!(o.name in OPTIMIZERS)) o.name = DEFAULTS.optimizer.name;
  if (!(s.noise.name in NOISES)) s.noise.name = "gaussian";
  if (!["zero", "second-moment"].includes(o.v0)) o.v0 = "zero";
  if (!["whole", "rest"].includes(s.view)) s.view = "whole";
  s.dim = s.dim === 1 ? 1 : 2;
  o.lr = within(o.lr, 1e-6, 2);
  o.b1 = within(o.b1, 0, 0.9999);
  o.b2 = within(o.b2, 0.01, 0.99999);
  o.eps = within(o.eps, 0, 10);
  o.weight_decay = within(o.weight_decay, 0, 100);
  s.noise.df = within(s.noise.df, 0.5, 100);
  s.noise.scale = s.noise.scale.map((v) => within(v, 1e-4, 1e4));
  s.curvature = s.curvature.map((v) => within(v, 1e-4, 1e4));
  s.start = s.start.map((v) => within(v, -1e3, 1e3));
  s.steps = Math.round(within(s.steps, 10, 20000));
  s.substeps = Math.round(within(s.substeps, 1, 64));
  s.ratio = within(s.ratio, 1 / 64, 64);
  return s;
}

// ── Another batch size ─────────────────────────────────────────────────────────────────────────────────────────────

/** The settings at a batch `ratio` times as large, by the rule that keeps the SDE; or {error}. */
export function atBatchRatio(settings) {
  const { optimizer: o, noise, ratio } = settings;
  const cauchy = noise.name === "student-t" && noise.df === 1;
  if (noise.name !== "gaussian" && !cauchy)
    return { error: "the mean of several draws of this noise has another law; only normal and Cauchy noise keep theirs" };
  const given = { optimizer: o.name, lr: o.lr, weight_decay: o.weight_decay, b1: o.b1, b2: o.b2, eps: o.eps, decay: "coupled" };
  const found = rescale({ optimizer: given, batch: 1, to: ratio, steps: settings.steps });
  if (found.error) return { error: found.error };
  const next = structuredClone(settings);
  const n = found.numbers;
  next.optimizer = { ...o, lr: n.lr, weight_decay: n.theta, b1: n.memories.b1 ?? o.b1, b2: n.memories.b2 ?? o.b2 };
  if (n.eps !== null) next.optimizer.eps = n.eps;
  if (!cauchy) next.noise.scale = noise.scale.map((v) => v / Math.sqrt(ratio));
  next.steps = found.counts.steps;
  return { settings: next, rule: found.rule };
}

// ── As code ────────────────────────────────────────────────────────────────────────────────────────────────────────

const list = (values, write) => `[${values.map(write).join(", ")}]`;
const short = (value) => String(Number(value.toPrecision(10)));

function parts(settings, write) {
  const c = caseOf(settings);
  const o = settings.optimizer;
  const rows = c.d === 2 && c.H[1] !== 0;
  const curvature = rows
    ? `[${list(c.H.slice(0, 2), write)}, ${list(c.H.slice(2), write)}]`
    : list(c.d === 2 ? [c.H[0], c.H[3]] : c.H, write);
  const scale = c.scale.every((v) => v === c.scale[0]) ? write(c.scale[0]) : list(c.scale, write);
  const numbers = [["lr", write(o.lr)]];
  if (hasMean(c)) numbers.push(["b1", write(o.b1)]);
  if (isAdaptive(c) || c.name === "lion") numbers.push(["b2", write(o.b2)]);
  if (isAdaptive(c) && o.eps !== 1e-8) numbers.push(["eps", write(o.eps)]);
  if (o.weight_decay > 0) numbers.push(["weight_decay", write(o.weight_decay)]);
  if (isAdaptive(c) && o.v0 !== (c.name === "adamw" ? "zero" : "second-moment")) numbers.push(["v0", o.v0]);
  if (c.nesterov) numbers.push(["nesterov", true]);
  return { c, curvature, start: list(c.start, write), scale, numbers };
}

/** Python that runs the same comparison and prediction with the library. */
export function pythonOf(settings) {
  const { c, curvature, start, scale, numbers } = parts(settings, pythonNumber);
  const df = c.law.name === "student-t" ? `, df=${pythonNumber(c.law.df)}` : "";
  const quoted = (v) => (v === true ? "True" : /^[a-z]/.test(v) ? `"${v}"` : v);
  const given = numbers.map(([key, v]) => `${key}=${quoted(v)}`).join(", ");
  const models =
    settings.substeps > 1 ? `, models=["optimizer", sl.ClosedForm("sde", substeps=${settings.substeps})]` : "";
  return [
    "import sdelens as sl",
    "",
    `problem = sl.Quadratic(curvature=${curvature}, start=${start})`,
    `noise = sl.${LAWS[c.law.name]}(scale=${scale}${df})`,
    `optimizer = sl.${CLASSES[c.name]}(${given})`,
    `result = sl.compare(problem, noise, optimizer, steps=${settings.steps}, paths=4096${models})`,
    "print(result)",
  ].join("\n");
}

/** The command that runs the same comparison. */
export function commandOf(settings) {
  const { c, curvature, start, scale, numbers } = parts(settings, short);
  const df = c.law.name === "student-t" ? `, df=${short(c.law.df)}` : "";
  const given = numbers.map(([key, v]) => `${key}=${v}`).join(", ");
  const models = settings.substeps > 1 ? ` --models 'optimizer, sde(substeps=${settings.substeps})'` : "";
  return (
    `sdelens compare --problem 'quadratic(curvature=${curvature}, start=${start})' ` +
    `--noise '${c.law.name}(scale=${scale}${df})' --optimizer '${c.name}(${given})' ` +
    `--steps ${settings.steps} --paths 4096${models}`
  );
}
