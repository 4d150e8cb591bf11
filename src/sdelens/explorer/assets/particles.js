// Paths of an optimizer and of its SDEs, many at once. Pure functions of a case and a seed.
import { Random } from "./laws.js";
import { hasMean, isAdaptive, memoryOf } from "./engine.js";

const CONVERGED = 2 ** 30;
const LEAST_EPS = Math.sqrt(1.1754943508222875e-38);
const STREAMS = { optimizer: 0x1f3d, sde: 0x2b71, malladi2022: 0x3c95 };

/** The models that exist for a case. */
export function modelsOf(c) {
  const found = ["optimizer"];
  if (c.name === "signsgd" || Number.isFinite(c.law.variance)) {
    found.push("sde");
    if (isAdaptive(c)) found.push("malladi2022");
  }
  return found;
}

/**
 * Simulate `count` paths of a model and call `visit(r, x, count)` at every recorded step `at[r]`, with x of shape
 * (d, count), which the function reuses. An SDE takes `substeps` steps of the integrator 'sequential' per step.
 */
export function simulate(c, model, count, seed, at, substeps, visit) {
  const random = new Random(Math.imul(seed + 1, 0x9e3779b1) ^ STREAMS[model]);
  follow(c, model, count, random, at, substeps, visit);
}

/** The same with the random numbers of `random`. */
export function follow(c, model, count, random, at, substeps, visit) {
  const paths = startPaths(c, count);
  const grad = new Float64Array(c.d * count);
  const step = model === "optimizer" ? optimizerStep : sdeStep;
  let k = 0;
  for (let r = 0; r < at.length; r++) {
    for (; k < at[r]; k++) step(c, model, paths, grad, k, random, substeps);
    visit(r, paths.x, count);
  }
}

function startPaths(c, count) {
  const { d } = c;
  const size = d * count;
  const paths = { x: new Float64Array(size), m: null, v: null, count, gradients: 0 };
  for (let i = 0; i < d; i++) paths.x.fill(c.start[i], i * count, (i + 1) * count);
  if (hasMean(c)) paths.m = new Float64Array(size);
  if (isAdaptive(c)) {
    paths.v = new Float64Array(size);
    if (c.v0 === "second-moment") {
      const grad = new Float64Array(size);
      gradients(c, paths.x, grad, count);
      for (let j = 0; j < size; j++) paths.v[j] = grad[j] * grad[j] + c.noise[Math.floor(j / count)];
      if (paths.m) {
        paths.m.set(grad);
        paths.gradients = CONVERGED;
      }
    }
  }
  return paths;
}

function gradients(c, x, out, count) {
  const { H } = c;
  if (c.d === 1) {
    for (let j = 0; j < count; j++) out[j] = H[0] * x[j];
    return;
  }
  for (let j = 0; j < count; j++) {
    const a = x[j];
    const b = x[count + j];
    out[j] = H[0] * a + H[1] * b;
    out[count + j] = H[2] * a + H[3] * b;
  }
}

const corrected = (beta, steps) => (beta === 0 ? 1 : -Math.expm1(steps * Math.log(beta)));

function optimizerStep(c, model, paths, grad, k, random) {
  const { d, lr, b1, b2, law, name } = c;
  const { x, m, v, count } = paths;
  const keep = 1 - lr * c.theta;
  const eps = Math.max(c.eps, LEAST_EPS);
  const first = name === "adamw" ? corrected(b1, k + 1 + paths.gradients) : 1;
  const second = name === "adamw" ? corrected(b2, k + 1 + paths.gradients) : 1;
  gradients(c, x, grad, count);
  for (let i = 0; i < d; i++) {
    const scale = c.scale[i];
    for (let j = i * count; j < (i + 1) * count; j++) {
      const g = grad[j] + scale * law.sample(random);
      let move;
      switch (name) {
        case "sgd":
          move = g;
          break;
        case "signsgd":
          move = Math.sign(g);
          break;
        case "rmspropw":
          v[j] = b2 * v[j] + (1 - b2) * g * g;
          move = g / (Math.sqrt(v[j]) + eps);
          break;
        case "adamw":
          m[j] = b1 * m[j] + (1 - b1) * g;
          v[j] = b2 * v[j] + (1 - b2) * g * g;
          move = m[j] / first / (Math.sqrt(v[j] / second) + eps);
          break;
        case "momentum":
          m[j] = b1 * m[j] + (1 - b1) * g;
          move = c.nesterov ? b1 * m[j] + (1 - b1) * g : m[j];
          break;
        case "signum":
          m[j] = b1 * m[j] + (1 - b1) * g;
          move = Math.sign(m[j]);
          break;
        default: // lion
          move = Math.sign(b1 * m[j] + (1 - b1) * g);
          m[j] = b2 * m[j] + (1 - b2) * g;
      }
      x[j] = keep * x[j] - lr * move;
    }
  }
}

function sdeStep(c, model, paths, grad, k, random, substeps) {
  const { d, lr, b1, law, theta, name } = c;
  const { x, m, v, count } = paths;
  const dt = lr / substeps;
  const root = Math.sqrt(lr * dt); // √η times the standard deviation of dW
  const memory = memoryOf(c);
  const rho = (1 - memory) / lr;
  const rho2 = (1 - c.b2) / lr;
  const eps = Math.max(c.eps, LEAST_EPS);
  const first = name === "adamw" ? corrected(b1, k + 1 + paths.gradients) : 1;
  const second = name === "adamw" ? corrected(c.b2, k + 1 + paths.gradients) : 1;
  const earlier = model === "malladi2022";
  const ahead = earlier || substeps === 1 ? 0 : lr - dt; // by how much X looks ahead of the new M
  for (let n = 0; n < substeps; n++) {
    gradients(c, x, grad, count);
    for (let i = 0; i < d; i++) {
      const scale = c.scale[i];
      const variance = c.noise[i];
      const sd = Math.sqrt(variance);
      for (let j = i * count; j < (i + 1) * count; j++) {
        const g = grad[j];
        const w = root * random.normal();
        if (v) v[j] += rho2 * ((earlier ? 0 : g * g) + variance - v[j]) * dt;
        let dx;
        switch (name) {
          case "sgd":
            dx = g * dt + sd * w;
            break;
          case "signsgd": {
            const e = law.meanSign(g / scale);
            dx = e * dt + Math.sqrt(Math.max((1 - e) * (1 + e), 0)) * w;
            break;
          }
          case "rmspropw":
            dx = (g * dt + sd * w) / (Math.sqrt(v[j]) + eps);
            break;
          case "adamw":
            m[j] += rho * (g - m[j]) * dt + rho * sd * w;
            dx = (((m[j] + ahead * rho * (g - m[j])) / first) * dt) / (Math.sqrt(v[j] / second) + eps);
            break;
          case "momentum": {
            m[j] += rho * (g - m[j]) * dt + rho * sd * w;
            const look = m[j] + ahead * rho * (g - m[j]);
            dx = c.nesterov ? (b1 * look + (1 - b1) * g) * dt + (1 - b1) * sd * w : look * dt;
            break;
          }
          default: {
            // signum, lion: X moves by the old M
            const a = (g + (b1 / (1 - b1)) * m[j]) / scale;
            const e = law.meanSign(a);
            const slope = (scale * law.signedMean(a)) / variance;
            const rest = Math.max((1 - e) * (1 + e) - slope * slope * variance, 0);
            dx = e * dt + slope * sd * w + Math.sqrt(rest) * root * random.normal();
            m[j] += rho * (g - m[j]) * dt + rho * sd * w;
          }
        }
        x[j] -= dx + theta * x[j] * dt;
      }
    }
  }
}

/** Accumulates the mean loss of paths and its standard error at every record. */
export class MeanLoss {
  constructor(records) {
    this.sum = new Float64Array(records);
    this.squares = new Float64Array(records);
    this.paths = 0;
  }

  add(c, r, x, count) {
    const { H } = c;
    let sum = 0;
    let squares = 0;
    for (let j = 0; j < count; j++) {
      const a = x[j];
      const b = c.d === 1 ? 0 : x[count + j];
      const loss = c.d === 1 ? 0.5 * H[0] * a * a : 0.5 * (H[0] * a * a + 2 * H[1] * a * b + H[3] * b * b);
      sum += loss;
      squares += loss * loss;
    }
    this.sum[r] += sum;
    this.squares[r] += squares;
  }

  get mean() {
    return this.sum.map((v) => v / this.paths);
  }

  get error() {
    const n = this.paths;
    return this.sum.map((s, r) => Math.sqrt(Math.max(this.squares[r] / n - (s / n) ** 2, 0) / (n - 1)));
  }
}
