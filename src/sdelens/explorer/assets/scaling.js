// The rules of `sdelens.scaling` for another batch size, with the reason of every number, and the code of the result.
// Pure functions. A run is {optimizer: {optimizer, lr, …, decay}, batch, to, steps, warmup, rule, momentum, snr}.
import { erf } from "./laws.js";

export const RULES = {
  sqrt: { lr: 0.5, regime: "noise", momentum: "samples", decay: true },
  linear: { lr: 1, regime: "signal", momentum: "samples", decay: true },
  "signal-to-noise": {
    lr: null,
    regime: "measured",
    momentum: "second-moment",
    decay: true,
    families: ["rmspropw", "adamw", "signsgd", "signum", "lion"],
  },
  none: { lr: 0, regime: null, momentum: "fixed", decay: false },
  "sign-momentum": { lr: null, regime: "noise", momentum: "samples", decay: true, families: ["signum", "lion"] },
  malladi2022: { lr: 0.5, regime: "noise", momentum: "samples", decay: false, families: ["rmspropw", "adamw"] },
  "sqrt-lr": { lr: 0.5, regime: null, momentum: "fixed", decay: false },
  goyal2017: { lr: 1, regime: null, momentum: "fixed", decay: false },
  marek2025: { lr: 0, regime: null, momentum: "second-moment", decay: false, families: ["rmspropw", "adamw"] },
  bergsma2025: { lr: 0, regime: null, momentum: "fixed", decay: true, families: ["adamw"] },
};

/** Rule that keeps the SDE of an optimizer. */
export const DEFAULT_RULE = {
  sgd: "linear",
  momentum: "linear",
  signsgd: "sqrt",
  rmspropw: "sqrt",
  adamw: "sqrt",
  signum: "sign-momentum",
  lion: "sign-momentum",
};

const MOMENTA = {
  samples: "1 − β times the batch ratio δ: a mean remembers as many samples as before, to first order in 1 − β",
  "half-life":
    "β to the power δ: the half-life in samples is kept exactly, and every ratio is possible, but at a large ratio " +
    "momentum loses its damping",
  time:
    "1 − β times the factor of the learning rate: a mean remembers the same span of time t = kη as before",
  fixed: "β unchanged: a mean remembers as many steps as before",
};

const RATES = {
  sqrt:
    "√δ: where noise dominates, a step moves x by η√B ∇f/σ and adds the variance η², and 1/δ as many steps keep both",
  malladi2022: "√δ, the square-root scaling rule of Malladi et al. 2022",
  "sqrt-lr": "√δ: the variance of one update of SGD, η²σ²/B, is kept",
  linear: "δ: 1/δ as many steps go equally far along the gradient",
  goyal2017: "δ, the linear scaling rule of Goyal et al. 2017",
  "sign-momentum":
    "√δ times the change of the standard deviation of the argument of the sign, in units of σ/√B: this keeps the " +
    "mean sign per sample",
};

const SIGNS = ["signsgd", "signum", "lion"];
const ADAPTIVE = ["rmspropw", "adamw"];
const ALIASES = { adam: "adamw", rmsprop: "rmspropw" };

// ── Numbers as Python writes them ──────────────────────────────────────────────────────────────────────────────────

/** A number in Python's format `.{digits}g`. */
export function general(value, digits) {
  if (!Number.isFinite(value)) return value > 0 ? "inf" : value < 0 ? "-inf" : "nan";
  if (value === 0) return "0";
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  const exponent = Number(power);
  const trimmed = (text) => (text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text);
  if (exponent < -4 || exponent >= digits) {
    const size = String(Math.abs(exponent)).padStart(2, "0");
    return `${trimmed(mantissa)}e${exponent < 0 ? "-" : "+"}${size}`;
  }
  return trimmed(value.toFixed(Math.max(digits - 1 - exponent, 0)));
}

/** A number as Python's `repr` of a float, after rounding to 12 digits. */
export function pythonNumber(value) {
  const rounded = Number(value.toPrecision(12));
  const text = String(rounded);
  const [, mantissa, , power] = /^(-?[\d.]+)(e([+-]?\d+))?$/.exec(text) ?? [];
  const size = Math.abs(rounded);
  if (rounded !== 0 && size < 1e-4) {
    const [head, tail] = rounded.toExponential().split("e");
    return `${head}e-${tail.slice(1).padStart(2, "0")}`;
  }
  if (power) return `${mantissa}e${power.startsWith("+") ? power : `+${power}`}`;
  return text.includes(".") ? text : `${text}.0`;
}

// Exact fractions of decimals: 1 − 0.9 is 1/10, and ten times that is 1.
function fraction(value) {
  const [mantissa, power = "0"] = String(value).split("e");
  const [whole, decimals = ""] = mantissa.split(".");
  let top = BigInt(whole + decimals);
  let bottom = 1n;
  const shift = Number(power) - decimals.length;
  if (shift >= 0) top *= 10n ** BigInt(shift);
  else bottom = 10n ** BigInt(-shift);
  return [top, bottom];
}

function real([top, bottom]) {
  let [a, b] = [top < 0n ? -top : top, bottom];
  while (b) [a, b] = [b, a % b];
  return Number(top / (a || 1n)) / Number(bottom / (a || 1n));
}

const product = ([a, b], [c, d]) => [a * c, b * d];
const complement = ([a, b]) => [b - a, b];
const forgets = (beta) => complement(fraction(beta));

// ── The record and the factors ─────────────────────────────────────────────────────────────────────────────────────

function record(given) {
  const name = given.optimizer;
  let family = ALIASES[name] ?? name;
  const own = ["adam", "rmsprop", "sgd"].includes(name) ? "l2" : "coupled";
  const numbers = {
    lr: given.lr,
    memories: {},
    blend: null,
    undamped: null,
    eps: null,
    decay: given.decay ?? own,
    theta: given.weight_decay ?? 0,
  };
  if (["adamw", "momentum", "signum"].includes(family)) numbers.memories.b1 = given.b1;
  if (["adamw", "rmspropw", "lion"].includes(family)) numbers.memories.b2 = given.b2;
  if (family === "signum" || family === "lion") numbers.blend = given.b1;
  if (ADAPTIVE.includes(family)) numbers.eps = given.eps;
  if (family === "sgd" && given.momentum > 0) {
    family = "momentum";
    numbers.memories.momentum = given.momentum;
    numbers.undamped = "momentum";
    numbers.lr = given.lr / (1 - given.momentum);
  }
  return { ...numbers, family };
}

const writtenRate = (n) => (n.undamped ? n.lr * (1 - n.memories[n.undamped]) : n.lr);
const squaresOf = (n) => Object.keys(n.memories).filter((k) => k === "b2" && ADAPTIVE.includes(n.family));
const regimeOf = (rule, family) => (rule.regime && ["sgd", "momentum"].includes(family) ? "noise" : rule.regime);

function spread(n) {
  const b = n.blend ?? 0;
  const beta = Object.values(n.memories)[0] ?? 0;
  return Math.sqrt((1 - b) ** 2 + (b * b * (1 - beta)) / (1 + beta));
}

const squareChange = (ratio, snr) => (Number.isFinite(snr) ? (snr * snr + 1 / ratio) / (snr * snr + 1) : 1);

function signFactor(ratio, snr, before, after) {
  if (!Number.isFinite(snr)) return ratio;
  const old = snr / (Math.SQRT2 * before);
  const now = (Math.sqrt(ratio) * snr) / (Math.SQRT2 * after);
  if (Math.min(old, now) < 1e-8) return (Math.sqrt(ratio) * after) / before;
  return (ratio * erf(old)) / erf(now);
}

function timeFactor(change) {
  if (change.rule.lr !== null) return change.ratio ** change.rule.lr;
  return change.ratio * Math.sqrt(squareChange(change.ratio, change.snr));
}

function memory(name, old, change) {
  const beta = old.memories[name];
  const squares = squaresOf(old);
  if (beta === 0 || change.momentum === "fixed") return beta;
  if (change.momentum === "second-moment" && !squares.includes(name)) return beta;
  if (change.momentum === "half-life" || change.momentum === "second-moment") {
    const left = beta ** change.ratio;
    return left > 1e-30 ? left : 0;
  }
  if (change.momentum === "samples" || change.rule.lr === 1)
    return real(complement(product(change.exact, forgets(beta))));
  return Math.max(0, 1 - timeFactor(change) * real(forgets(beta)));
}

/** The largest possible batch ratio for every decay β. */
function largestRatio(beta, change) {
  const limit = 1 / real(forgets(beta));
  if (change.momentum === "samples" || change.rule.lr === 1) return limit;
  if (change.rule.lr !== null) return change.rule.lr === 0 ? Infinity : limit ** (1 / change.rule.lr);
  const target = limit * limit * (1 + change.snr ** 2);
  return (2 * target) / (1 + Math.sqrt(1 + 4 * change.snr ** 2 * target));
}

function rateFactor(old, now, change) {
  const { rule, ratio } = change;
  if (rule.lr !== null) return ratio ** rule.lr;
  if (rule.regime !== "measured") return (Math.sqrt(ratio) * spread(now)) / spread(old);
  if (SIGNS.includes(old.family)) return signFactor(ratio, change.snr, spread(old), spread(now));
  return ratio * Math.sqrt(squareChange(ratio, change.snr));
}

function expectedSquare(old, change) {
  const regime = regimeOf(change.rule, old.family);
  if (regime === "noise") return 1 / change.ratio;
  return regime === "measured" ? squareChange(change.ratio, change.snr) : 1;
}

// ── Reasons ────────────────────────────────────────────────────────────────────────────────────────────────────────

function rateReason(old, now, change) {
  const rate = now.lr / old.lr;
  let why = RATES[change.name] ?? "not changed by this rule";
  if (change.rule.regime === "measured") {
    const read = `at the SNR u = ${general(change.snr, 3)} of the old batch`;
    why = SIGNS.includes(old.family)
      ? `δ divided by the change of the mean sign, ${read}: this keeps the mean sign per sample`
      : `√(δ(1 + δu²)/(1 + u²)) ${read}: drift and noise per sample of a step η g/√E g² are kept, because η/√E g² is ` +
        "multiplied by δ; between √δ (noise only) and δ (no noise)";
  }
  if (["sgd", "momentum"].includes(old.family) && change.name === "sqrt")
    why =
      "√δ, as requested; SGD's drift per sample is then multiplied by 1/√δ, and the variance of its noise per sample " +
      "by 1/δ";
  if (old.undamped)
    why +=
      `; the buffer is a sum of gradients, not a mean, so the effective rate is lr/(1 − ${old.undamped}); it changes ` +
      `by the factor ${general(rate, 4)}, and lr also compensates the change of 1 − ${old.undamped}`;
  return why;
}

function memoryReason(name, old, change) {
  if (old.memories[name] === 0) return "0 means no memory and does not change";
  if (change.momentum === "second-moment")
    return squaresOf(old).includes(name)
      ? "to the power δ: the mean of squares keeps its half-life in samples"
      : "not changed: momentum keeps its damping";
  return MOMENTA[change.momentum];
}

function squaresReason(old, change) {
  const regime = regimeOf(change.rule, old.family);
  if (regime === "noise")
    return "where noise dominates, squared gradients are of size σ²/B, and this number scales with them";
  if (regime === "signal") return "the gradient dominates, and its size does not depend on the batch size";
  if (regime === "measured")
    return "squared gradients are multiplied by (u² + 1/δ)/(u² + 1), and this number scales with them";
  return "not changed by this rule";
}

function decayReason(old, now, change) {
  if (old.decay === "l2")
    return "L2 is part of the gradient and does not change: the objective f + θ‖x‖²/2 is the same at every batch size";
  if (change.rule.decay && old.decay === "coupled")
    return (
      "δ divided by the factor of lr: this keeps the decay per sample, nηθ, and thus the time scale B/(ηθ) in samples " +
      "(Wang and Aitchison 2024, arXiv 2405.13698)"
    );
  if (change.rule.decay)
    return "δ: this decay is not multiplied by lr, and δ keeps nθ, the decay per sample";
  const strength = (old.decay === "coupled" ? now.lr / old.lr : 1) / change.ratio;
  if (Math.abs(strength - 1) < 1e-9) return "not changed by this rule, which keeps the decay per sample here";
  return `not changed by this rule: the decay per sample is multiplied by ${general(strength, 4)}`;
}

function countRow(name, before, exactRatio) {
  const [top, bottom] = exactRatio;
  const [a, b] = [BigInt(before) * bottom, top];
  const after = Math.max(Number((2n * a + b) / (2n * b)), before ? 1 : 0);
  const same = "÷ δ: the same number of samples";
  const why = a % b === 0n && Number(a / b) === after
    ? same
    : `${same}, ${general(real([a, b]), 8)} steps, rounded to a whole number`;
  return { name, before, after, factor: before ? after / before : 1, why, of: name };
}

// ── Rescaling ──────────────────────────────────────────────────────────────────────────────────────────────────────

/** The new numbers with an account, or {error, largest} if a decay β would be negative or the rule does not apply. */
export function rescale(run) {
  const old = record(run.optimizer);
  const name = run.rule ?? DEFAULT_RULE[old.family];
  const rule = RULES[name];
  if (rule.families && !rule.families.includes(old.family))
    return { error: `Rule ${name} applies to ${rule.families.join(" and ")}, not to ${old.family}.` };
  if (rule.regime === "measured" && !(run.snr >= 0))
    return { error: `Rule ${name} needs the signal-to-noise ratio at the old batch size.` };
  let momentum = run.momentum ?? rule.momentum;
  if (momentum === "second-moment" && Object.keys(old.memories).length && !squaresOf(old).length) {
    if (run.momentum)
      return { error: `${old.family} keeps no mean of squared gradients, so 'second-moment' does not apply to it.` };
    momentum = "samples";
  }
  const byMemory = rule.lr === null && !ADAPTIVE.includes(old.family);
  if (byMemory && momentum === "time")
    return { error: "With this rule lr follows from β, so 'time' does not apply; choose another treatment of β." };
  const ratio = run.to / run.batch;
  const change = { name, rule, momentum, ratio, exact: fraction(ratio), snr: run.snr ?? null };
  if (momentum === "samples" || momentum === "time") {
    const slack = momentum === "samples" ? 1 : 1 + 1e-12;
    const limits = Object.entries(old.memories)
      .filter(([, beta]) => beta > 0)
      .map(([key, beta]) => [largestRatio(beta, change), key]);
    const bad = limits.filter(([limit]) => ratio > limit * slack * (1 + 1e-15));
    if (bad.length) {
      const [largest, key] = bad.sort((a, b) => a[0] - b[0])[0];
      const factor = momentum === "samples" ? ratio : timeFactor(change);
      const worth = factor * (1 - old.memories[key]);
      return {
        error:
          `At the ratio ${general(ratio, 6)}, 1 − ${key} = ${general(worth, 4)} exceeds 1, so ${key} would be negative. ` +
          `The largest possible ratio is ${general(largest, 6)}. Choose another treatment of β, or a smaller batch.`,
        largest,
        bad: bad.map(([, k]) => k),
      };
    }
  }
  const memories = Object.fromEntries(Object.keys(old.memories).map((k) => [k, memory(k, old, change)]));
  const now = { ...old, memories };
  if (old.family === "signum") now.blend = memories.b1;
  const rate = rateFactor(old, now, change);
  const square = expectedSquare(old, change);
  const decay = rule.decay ? { l2: 1, independent: ratio, coupled: ratio / rate }[old.decay] : 1;
  now.lr = old.lr * rate;
  now.eps = old.eps === null ? null : old.eps * Math.sqrt(square);
  now.theta = old.theta * decay;

  const row = (key, before, after, why) => ({ name: key, before, after, factor: before ? after / before : 1, why, of: key });
  const rows = [row("lr", writtenRate(old), writtenRate(now), rateReason(old, now, change))];
  for (const key of Object.keys(old.memories)) {
    const factor = real(product(forgets(memories[key]), forgets(old.memories[key]).slice().reverse()));
    const why = memoryReason(key, old, change);
    rows.push({ name: key, before: old.memories[key], after: memories[key], factor, why, of: `1 − ${key}` });
  }
  if (old.family === "lion")
    rows.push(
      row("b1", old.blend, old.blend, "it only weights the newest gradient in the argument of the sign and does not change"),
    );
  if (old.eps !== null) rows.push(row("eps", old.eps, now.eps, squaresReason(old, change)));
  if (old.theta > 0) rows.push(row("weight_decay", old.theta, now.theta, decayReason(old, now, change)));
  const counts = {};
  for (const key of ["steps", "warmup"])
    if (Number.isInteger(run[key])) {
      const found = countRow(key, run[key], change.exact);
      counts[key] = found.after;
      rows.push(found);
    }
  return { rule: name, momentum, ratio, numbers: now, rows, counts };
}

// ── Code ───────────────────────────────────────────────────────────────────────────────────────────────────────────

const listed = (args) =>
  Object.entries(args)
    .map(([key, v]) => `${key}=${Array.isArray(v) ? `(${v.map(pythonNumber).join(", ")})` : typeof v === "string" ? v : pythonNumber(v)}`)
    .join(", ");
const coupledDecay = (n) => (n.decay === "independent" ? n.theta / n.lr : n.theta);

/** The new optimizer as code of PyTorch; null if torch.optim has none. */
export function torchCode({ numbers: n, counts }) {
  const l2 = n.decay === "l2";
  let kind;
  let args = { lr: n.lr };
  const momentum = n.memories.momentum ?? (n.family === "momentum" ? n.memories.b1 : 0);
  if (n.family === "adamw") {
    kind = l2 ? "Adam" : "AdamW";
    args.betas = [n.memories.b1, n.memories.b2];
  } else if (n.family === "rmspropw" && (l2 || !n.theta)) {
    kind = "RMSprop";
    args.alpha = n.memories.b2;
  } else if (["sgd", "momentum"].includes(n.family) && (l2 || !n.theta || n.family === "sgd")) kind = "SGD";
  else return null;
  if (kind === "SGD" && momentum) args = { lr: n.lr * (1 - momentum), momentum };
  if (n.eps !== null && kind !== "SGD") args.eps = n.eps;
  args.weight_decay = coupledDecay(n);
  const lines = ["import torch", "", `optimizer = torch.optim.${kind}(model.parameters(), ${listed(args)})`];
  if (counts.warmup)
    lines.push(
      "scheduler = torch.optim.lr_scheduler.LambdaLR(" +
        `optimizer, lambda step: min(1.0, (step + 1) / ${counts.warmup}))`,
    );
  if (counts.steps) lines.push(`steps = ${counts.steps}`);
  return lines.join("\n");
}

/** The new optimizer as code of optax. */
export function optaxCode({ numbers: n, counts }) {
  const b = n.memories;
  const beta = Object.values(b)[0];
  const mean = `optax.scale(${pythonNumber(1 - (beta ?? 0))}), optax.trace(${pythonNumber(beta ?? 0)})`;
  const parts = {
    adamw: () => [`optax.scale_by_adam(${listed({ b1: b.b1, b2: b.b2, eps: n.eps })})`],
    rmspropw: () => [`optax.scale_by_rms(${listed({ decay: b.b2, eps: n.eps, eps_in_sqrt: "False" })})`],
    lion: () => [`optax.scale_by_lion(${listed({ b1: n.blend, b2: b.b2 })})`],
    signsgd: () => ["optax.scale_by_sign()"],
    sgd: () => [],
    momentum: () => [`optax.chain(${mean})`],
    signum: () => [`optax.chain(${mean}, optax.scale_by_sign())`],
  }[n.family]();
  const decay = coupledDecay(n);
  if (decay) parts.splice(n.decay === "l2" ? 0 : parts.length, 0, `optax.add_decayed_weights(${pythonNumber(decay)})`);
  const lines = ["import optax", ""];
  const w = counts.warmup;
  if (w) {
    const start = pythonNumber(w > 1 ? n.lr / w : n.lr);
    lines.push(`learning_rate = optax.linear_schedule(${start}, ${pythonNumber(n.lr)}, ${Math.max(w - 1, 1)})`);
  } else lines.push(`learning_rate = ${pythonNumber(n.lr)}`);
  parts.push("optax.scale_by_learning_rate(learning_rate)");
  lines.push("optimizer = optax.chain(", ...parts.map((part) => `    ${part},`), ")");
  if (counts.steps) lines.push(`steps = ${counts.steps}`);
  return lines.join("\n");
}

/** The command that prints the same numbers. */
export function commandOfRun(run, snr) {
  const flags = { momentum: "mu", weight_decay: "weight-decay" };
  const parts = [`sdelens scale ${run.optimizer.optimizer}`];
  for (const [key, value] of Object.entries(run.optimizer))
    if (key !== "optimizer" && !(value === 0 && ["momentum", "weight_decay"].includes(key)))
      parts.push(`--${flags[key] ?? key} ${value}`);
  parts.push(`--batch ${run.batch} --to ${run.to} --steps ${run.steps} --warmup ${run.warmup} --rule ${run.rule}`);
  if (run.momentum) parts.push(`--momentum ${run.momentum}`);
  if (RULES[run.rule].regime === "measured") parts.push(`--snr ${snr}`);
  return parts.join(" ");
}

// ── Whether the rule may be trusted ────────────────────────────────────────────────────────────────────────────────

/** What the signal-to-noise ratio says about a rule: {level: "good" | "doubtful" | "bad" | "unknown", text}. */
export function verdict(found, snr) {
  const { numbers, rule, ratio } = found;
  const regime = regimeOf(RULES[rule], numbers.family);
  const larger = snr * Math.sqrt(Math.max(ratio, 1));
  const smaller = snr * Math.sqrt(Math.min(ratio, 1));
  const at = `The signal-to-noise ratio at the larger batch size is ${general(larger, 3)}`;
  if (rule === "none")
    return { level: "doubtful", text: "Nothing but the number of steps changes; the two runs are different processes." };
  if (["sgd", "momentum"].includes(numbers.family))
    return RULES[rule].lr === 1
      ? { level: "good", text: "The linear rule keeps SGD's drift and noise at every signal-to-noise ratio, if steps are small (ηλ ≪ 1)." }
      : { level: "bad", text: "Only the linear rule keeps the drift and noise per sample of SGD." };
  if (!(snr >= 0))
    return {
      level: "unknown",
      text: "Whether the rule holds depends on the signal-to-noise ratio √(B‖∇f‖²/tr Σ); measure it from gradients.",
    };
  if (regime === "measured")
    return { level: "good", text: `${at}; this rule takes it into account. It falls later in a run, and the factor of lr with it.` };
  if (regime === "noise") {
    if (larger <= 0.25) return { level: "good", text: `${at}: noise dominates, as the rule assumes.` };
    if (larger <= 0.5) return { level: "good", text: `${at}: the error of the path is up to about 5 %.` };
    if (larger <= 1)
      return { level: "doubtful", text: `${at}: the error of the path is 5 to 20 %. Rule signal-to-noise uses the measured value.` };
    return {
      level: "bad",
      text: `${at}: the gradient is as large as the noise, and the error of the path is 20 % and more. Use rule signal-to-noise.`,
    };
  }
  if (regime === "signal")
    return smaller >= 2
      ? { level: "good", text: "The gradient dominates the noise at both batch sizes, as the rule assumes." }
      : { level: "bad", text: `The rule assumes that the gradient dominates, but the ratio at the smaller batch size is ${general(smaller, 3)}.` };
  return { level: "doubtful", text: "This rule changes few of the numbers, and does not keep the SDE of the optimizer." };
}
