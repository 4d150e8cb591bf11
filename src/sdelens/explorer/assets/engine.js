// The theory of `sdelens.theory` for a quadratic ½ xᵀHx of one or two coordinates: the Gaussian closure, stationary
// laws, phases and bounds. Pure functions. A case is an object as of `caseOf`; matrices are flat arrays, row by row.
import { HERMITE_20, HERMITE_48, LEGENDRE_24, TINY, erf, erfinv, lawOf } from "./laws.js";

export const SIGNS = ["signsgd", "signum", "lion"];
export const ADAPTIVE = ["rmspropw", "adamw"];
const MEMORIES = { momentum: "b1", signum: "b1", lion: "b2", adamw: "b1" };
const CONVERGED = 2 ** 30;
const LEAST_EPS = Math.sqrt(1.1754943508222875e-38); // float32 cannot represent the square of less

/** The case that a page's settings describe. Angles are in degrees, from the first coordinate to the first axis. */
export function caseOf(settings) {
  const { optimizer, noise } = settings;
  const d = settings.dim;
  const [first, second] = settings.curvature;
  const angle = d === 2 ? (settings.angle * Math.PI) / 180 : 0;
  const c = Math.cos(angle);
  const s = Math.sin(angle);
  const off = settings.angle % 90 === 0 ? 0 : (first - second) * s * c;
  const H = d === 1 ? [first] : [first * c * c + second * s * s, off, off, first * s * s + second * c * c];
  const law = lawOf(noise.name, noise.df);
  const scale = noise.scale.slice(0, d);
  return {
    d,
    H,
    curvature: settings.curvature.slice(0, d),
    start: settings.start.slice(0, d),
    law,
    scale,
    noise: scale.map((v) => v * v * law.variance),
    name: optimizer.name,
    lr: optimizer.lr,
    b1: ["rmspropw", "sgd", "signsgd"].includes(optimizer.name) ? 0 : optimizer.b1,
    b2: optimizer.b2,
    eps: optimizer.eps,
    theta: optimizer.weight_decay,
    v0: optimizer.v0,
    nesterov: optimizer.nesterov === true && optimizer.name === "momentum",
    steps: settings.steps,
  };
}

/** Decay of the mean of gradients m, if the optimizer has one. */
export const memoryOf = (c) => (MEMORIES[c.name] ? c[MEMORIES[c.name]] : 0);
export const hasMean = (c) => c.name in MEMORIES;
export const isSign = (c) => SIGNS.includes(c.name);
export const isAdaptive = (c) => ADAPTIVE.includes(c.name);

/** Why the closure does not exist for a case; empty if it does. */
export function whyNoClosure(c) {
  if (c.name === "signsgd" || Number.isFinite(c.law.variance)) return "";
  return "this noise has no finite variance, so the mean loss is infinite; particles only";
}

// ── Small linear algebra ───────────────────────────────────────────────────────────────────────────────────────────

export function gradientAt(c, x) {
  if (c.d === 1) return [c.H[0] * x[0]];
  return [c.H[0] * x[0] + c.H[1] * x[1], c.H[2] * x[0] + c.H[3] * x[1]];
}

export function lossAt(c, x) {
  const g = gradientAt(c, x);
  return 0.5 * (c.d === 1 ? x[0] * g[0] : x[0] * g[0] + x[1] * g[1]);
}

const zeros = (size) => new Array(size).fill(0);

function times(a, b, n) {
  const out = zeros(n * n);
  for (let i = 0; i < n; i++)
    for (let k = 0; k < n; k++) {
      const f = a[i * n + k];
      if (f !== 0) for (let j = 0; j < n; j++) out[i * n + j] += f * b[k * n + j];
    }
  return out;
}

function transposed(a, n) {
  const out = zeros(n * n);
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) out[j * n + i] = a[i * n + j];
  return out;
}

const sandwich = (a, b, n) => times(times(a, b, n), transposed(a, n), n);
const diagonalOf = (a, n) => Array.from({ length: n }, (_, i) => a[i * n + i]);

function diagonal(values) {
  const n = values.length;
  const out = zeros(n * n);
  for (let i = 0; i < n; i++) out[i * n + i] = values[i];
  return out;
}

function combined(n, ...terms) {
  const out = zeros(n * n);
  for (const [factor, matrix] of terms) for (let i = 0; i < n * n; i++) out[i] += factor * matrix[i];
  return out;
}

function rowsTimes(factor, a, n) {
  const out = zeros(n * n);
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) out[i * n + j] = factor[i] * a[i * n + j];
  return out;
}

/** The block of n × n numbers at (row, column) of a matrix of size m, and the same set. */
function block(a, m, row, column, n) {
  const out = zeros(n * n);
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) out[i * n + j] = a[(row + i) * m + column + j];
  return out;
}

function place(a, m, row, column, b, n) {
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) a[(row + i) * m + column + j] = b[i * n + j];
}

// ── Signs of a normal vector and of noise ──────────────────────────────────────────────────────────────────────────

/** Cov sign of two standard normal numbers with correlation r and means a, b (Plackett 1954). */
function signCovariance(r, a, b) {
  const angle = Math.asin(Math.max(-1, Math.min(1, r)));
  if (angle === 0) return 0;
  let total = 0;
  for (let k = 0; k < 24; k++) {
    const v = 0.5 * (LEGENDRE_24.nodes[k] + 1);
    const theta = angle * v * (2 - v);
    const cosine = Math.max(Math.cos(theta) ** 2, TINY);
    const exponent = (a * a + b * b - 2 * a * b * Math.sin(theta)) / (2 * cosine);
    total += LEGENDRE_24.weights[k] * 2 * angle * (1 - v) * Math.exp(-exponent);
  }
  return (2 / Math.PI) * total;
}

function normalSigns(centre, covariance, d) {
  const sd = diagonalOf(covariance, d).map(Math.sqrt);
  const standard = centre.map((v, i) => v / sd[i]);
  const mean = standard.map((v) => erf(v / Math.SQRT2));
  const slope = standard.map((v, i) => (Math.sqrt(2 / Math.PI) * Math.exp(-0.5 * v * v)) / sd[i]);
  const out = diagonal(mean.map((e) => (1 - e) * (1 + e)));
  if (d === 2) out[1] = out[2] = signCovariance(covariance[1] / (sd[0] * sd[1]), standard[0], standard[1]);
  return { mean, slope, covariance: out };
}

/** Moments of sign(A + cZ) for normal A of mean `centre` and covariance `argument`, and Cov(sign, Z) if asked for. */
function mixedSigns(c, centre, argument, share, withNoise) {
  const { d, law } = c;
  if (law.normal) {
    const total = combined(d, [1, argument], [share * share, diagonal(c.noise)]);
    const found = normalSigns(centre, total, d);
    found.fresh = found.slope.map((v, i) => share * v * c.noise[i]);
    return found;
  }
  const mean = [];
  const slope = [];
  const fresh = [];
  const { nodes, weights } = law.rule;
  for (let i = 0; i < d; i++) {
    const sd = Math.sqrt(Math.max(argument[i * d + i], 0)) / share;
    const at = centre[i] / share;
    const scale = c.scale[i];
    let e = 0;
    let p = 0;
    if (sd > scale) {
      for (let k = 0; k < nodes.length; k++) {
        const standard = (at + scale * nodes[k]) / sd;
        e += weights[k] * erf(standard / Math.SQRT2);
        p += (weights[k] * Math.sqrt(2 / Math.PI) * Math.exp(-0.5 * standard * standard)) / sd;
      }
    } else {
      const rule = c.rough ? HERMITE_20 : HERMITE_48;
      for (let k = 0; k < rule.nodes.length; k++) {
        const s = (at + sd * rule.nodes[k]) / scale;
        e += rule.weights[k] * law.meanSign(s);
        p += (rule.weights[k] * 2 * law.density(s)) / scale;
      }
    }
    mean.push(e);
    slope.push(p / share);
    if (withNoise) {
      let sum = 0;
      const wide = Math.SQRT2 * Math.max(sd * share, TINY);
      for (let k = 0; k < nodes.length; k++) {
        const z = scale * nodes[k];
        sum += weights[k] * z * erf((centre[i] + share * z) / wide);
      }
      fresh.push(sum);
    }
  }
  const covariance = diagonal(mean.map((e) => (1 - e) * (1 + e)));
  if (d === 2) covariance[1] = covariance[2] = slope[0] * argument[1] * slope[1];
  return { mean, slope, covariance, fresh };
}

// ── The fluctuation of v: factors F and N ──────────────────────────────────────────────────────────────────────────

const LEGENDRE_2 = [-1 / Math.sqrt(3), 1 / Math.sqrt(3)];
const SCRATCH = new Float64Array(256);
const TIMES = Array.from({ length: 19 }, (_, i) => Math.exp(i - 8));

function limited(pull, spread, known, share) {
  const f = known ? Math.max(pull, 0.05) : 1;
  const n = known ? Math.max(spread, 0) : 1;
  return [1 + share * (f - 1), 1 + share * (n - 1)];
}

/** Whether v fluctuates so much that the law of the noise is needed. */
const lawIsNeeded = (c) => (1 - c.b2) * (c.law.kurtosis + 2) > 0.05;

export function byExpansion(v, vv, lean, own, total, share) {
  const safe = Math.max(v, TINY);
  const ratio = vv / Math.max(v * v, TINY);
  const pull = (1 + ratio) ** 0.375 - (lean / safe) * (1 + ratio) ** -0.3;
  const spread = 1 + ratio - own / Math.max(safe * total, TINY);
  return limited(pull, spread, Number.isFinite(ratio) && Number.isFinite(own) && v > 0, share);
}

/** F and N of one coordinate from the law of its noise; u is E ∇f, and `count` may be infinite. */
export function byLaw(law, scale, v, u, variance, b1, b2, count, first, share) {
  const noise = scale * scale * law.variance;
  const square = u * u + variance + noise;
  const safe = Math.max(v, TINY);
  const left = b2 ** count;
  const top = b2 ** -0.5;
  const bottom = left * top;
  const at = LEGENDRE_2.map((n) => bottom + ((top - bottom) * (n + 1)) / 2);
  const many = at.map((w) => (top - bottom) / 2 / (w * -Math.log(b2)));
  const norm = (1 - left) / (many[0] * at[0] + many[1] * at[1]);
  const shrink = Math.min(1, safe / Math.max((1 - left) * square, TINY));
  const constant = Math.max(safe - (1 - left) * square * shrink, 0);
  const own = (((1 - b1) * (1 - b2) * (1 - (b1 * b2) ** count)) / ((1 - b1 * b2) * first)) * shrink;
  const small = u * u <= 1e-4 * square;
  const { nodes, weights } = law.heavy;
  const size = nodes.length;
  const squares = SCRATCH;
  for (let k = 0; k < size; k++) squares[k] = (u + scale * nodes[k]) ** 2;

  const logLaplace = (t) => {
    const wide = 1 + 2 * t * variance;
    let sum = 0;
    const a = t / wide;
    if (a * squares[0] < 1e-3 && a * squares[size - 1] < 1e-3) {
      for (let k = 0; k < size; k++) {
        const m = a * squares[k];
        sum -= weights[k] * m * (1 - m * (0.5 - m * (1 / 6 - m * (1 / 24 - m / 120))));
      }
    } else for (let k = 0; k < size; k++) sum += weights[k] * (Math.exp(-Math.min(a * squares[k], 60)) - 1);
    return Math.log1p(Math.max(sum, 2.22e-16 - 1)) - 0.5 * Math.log(wide);
  };
  let pull = 0;
  let spread = 0;
  for (let j = 0; j < TIMES.length; j++) {
    const t = TIMES[j] / safe;
    let rest = -constant * t;
    for (let i = 0; i < 2; i++) rest += many[i] * logLaplace(norm * at[i] * shrink * t);
    const wide = 1 + 2 * own * t * variance;
    let alone = 0;
    let slope = 0;
    let secant = 0;
    let second = 0;
    for (let k = 0; k < size; k++) {
      const minus = Math.min((own * t * squares[k]) / wide, 60);
      const value = Math.exp(-minus);
      const here = weights[k] * value;
      alone += weights[k] * (value - 1);
      slope += here * (1 - 2 * minus);
      secant += here * (u + scale * nodes[k]);
      second += here * nodes[k] * nodes[k];
    }
    rest -= Math.log1p(Math.max(alone, 2.22e-16 - 1)) - 0.5 * Math.log(wide);
    if (rest < -80) break; // it falls from here on
    const kept = Math.exp(rest);
    const root = Math.sqrt(wide);
    const a = ((Math.sqrt(t) * (small ? slope : secant / u)) / (wide * root)) * kept;
    const b = ((t * second * scale * scale) / root) * kept;
    pull += j ? a : a / (1 - Math.exp(-0.5));
    spread += j ? b : b / (1 - Math.exp(-1));
  }
  pull *= Math.sqrt(safe / Math.PI);
  spread = Math.min((spread * safe) / Math.max(noise, TINY), Math.max(pull, 1) ** 2);
  return limited(pull, spread, v > 0 && noise > 0, share);
}

/** F and N at rest of coordinate i, where E ∇f = 0 and its variance is `variance`. */
function atRest(c, i, variance, share, useLaw) {
  const total = variance + c.noise[i];
  if (useLaw) return byLaw(c.law, c.scale[i], total, 0, variance, c.b1, c.b2, Infinity, 1, share);
  const fourth = c.law.kurtosis * c.noise[i] ** 2 + 2 * total * total;
  const weight = ((1 - c.b1) * (1 - c.b2)) / (1 - c.b1 * c.b2);
  const own = weight * fourth;
  return byExpansion(total, ((1 - c.b2) / (1 + c.b2)) * fourth, weight * total, own, total, share);
}

const shareOfRoot = (v, eps) => {
  const root = Math.sqrt(v);
  return root / (root + Math.max(eps, TINY));
};

// ── The closure ────────────────────────────────────────────────────────────────────────────────────────────────────

/** The weights of the old m and of g in what x moves by. */
function mixture(c) {
  if (c.nesterov) return [c.b1 * c.b1, (1 + c.b1) * (1 - c.b1)];
  return [c.b1, 1 - c.b1];
}

/** Moments at step 0: means x, m, v and one covariance P of all of them. */
function startMoments(c) {
  const { d } = c;
  const u = gradientAt(c, c.start);
  const parts = 1 + hasMean(c) + isAdaptive(c);
  const y = { x: c.start.slice(), m: null, v: null, P: zeros((parts * d) ** 2), count: 0 };
  if (hasMean(c)) y.m = u.map(() => 0);
  if (isAdaptive(c)) {
    const settled = c.v0 === "second-moment";
    y.v = u.map((g, i) => (settled ? g * g + c.noise[i] : 0));
    y.lean = u.map(() => 0);
    y.own = u.map(() => 0);
    y.factors = u.map(() => [1, 1]);
    if (settled && y.m) {
      y.m = u.slice();
      y.count = CONVERGED;
    }
  }
  return y;
}

function advanceSigns(c, y) {
  const { d, H, lr } = c;
  const keep = 1 - lr * c.theta;
  const size = y.m ? 2 * d : d;
  const xx = block(y.P, size, 0, 0, d);
  const u = gradientAt(c, y.x);
  const within = sandwich(H, xx, d);
  if (!y.m) {
    const signs = mixedSigns(c, u, within, 1, false);
    const pull = bounded(times(rowsTimes(signs.slope, H, d), xx, d), xx, signs.covariance, d);
    y.P = even(
      combined(
        d,
        [keep * keep, xx],
        [-keep * lr, pull],
        [-keep * lr, transposed(pull, d)],
        [lr * lr, signs.covariance],
      ),
      d,
    );
    y.x = y.x.map((v, i) => keep * v - lr * signs.mean[i]);
    return;
  }
  const forget = memoryOf(c);
  const fresh = 1 - forget;
  const [old, now] = mixture(c);
  const xm = block(y.P, size, 0, d, d);
  const mm = block(y.P, size, d, d, d);
  const through = times(H, xm, d);
  const both = combined(d, [1, through], [1, transposed(through, d)]);
  const argument = combined(d, [old * old, mm], [old * now, both], [now * now, within]);
  const centre = u.map((g, i) => old * y.m[i] + now * g);
  const s = mixedSigns(c, centre, argument, now, true);
  const product = times(H, xx, d);
  const withX = bounded(
    rowsTimes(s.slope, combined(d, [old, transposed(xm, d)], [now, product]), d),
    xx,
    s.covariance,
    d,
  );
  const withM = bounded(rowsTimes(s.slope, combined(d, [old, mm], [now, through]), d), mm, s.covariance, d);
  const withG = combined(
    d,
    [1, rowsTimes(s.slope, combined(d, [old, transposed(through, d)], [now, within]), d)],
    [1, diagonal(s.fresh)],
  );
  const P = zeros(size * size);
  const newXx = combined(
    d,
    [keep * keep, xx],
    [-keep * lr, withX],
    [-keep * lr, transposed(withX, d)],
    [lr * lr, s.covariance],
  );
  const newXm = combined(
    d,
    [keep * forget, xm],
    [keep * fresh, transposed(product, d)],
    [-lr * forget, withM],
    [-lr * fresh, withG],
  );
  const newMm = combined(
    d,
    [forget * forget, mm],
    [forget * fresh, both],
    [fresh * fresh, within],
    [fresh * fresh, diagonal(c.noise)],
  );
  place(P, size, 0, 0, even(newXx, d), d);
  place(P, size, 0, d, newXm, d);
  place(P, size, d, 0, transposed(newXm, d), d);
  place(P, size, d, d, even(newMm, d), d);
  y.P = P;
  y.x = y.x.map((v, i) => keep * v - lr * s.mean[i]);
  y.m = y.m.map((v, i) => forget * v + fresh * u[i]);
}

function bounded(pull, spread, signs, d) {
  const factor = [];
  for (let i = 0; i < d; i++) {
    const most = Math.sqrt(Math.max(spread[i * d + i] * signs[i * d + i], 0));
    factor.push(most / Math.max(Math.abs(pull[i * d + i]), Math.max(most, TINY)));
  }
  return rowsTimes(factor, pull, d);
}

const SPACE = new Map();

/** Arrays for matrices of size n that are used again in every step. */
function spaceOf(n) {
  if (!SPACE.has(n)) {
    const names = ["A", "Q", "half", "one", "two"];
    SPACE.set(n, Object.fromEntries(names.map((name) => [name, new Float64Array(n * n)])));
  }
  return SPACE.get(n);
}

/** A P Aᵀ + Q for symmetric P and Q, of which only one triangle is computed; the result is overwritten two calls later. */
function propagated(A, P, Q, n) {
  const { half, one, two } = spaceOf(n);
  const out = P === one ? two : one;
  half.fill(0);
  for (let i = 0; i < n; i++)
    for (let k = 0; k < n; k++) {
      const f = A[i * n + k];
      if (f !== 0) for (let j = 0; j < n; j++) half[i * n + j] += f * P[k * n + j];
    }
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      let sum = Q[i * n + j];
      for (let k = 0; k < n; k++) sum += half[i * n + k] * A[j * n + k];
      out[i * n + j] = out[j * n + i] = sum;
    }
  return out;
}

const even = (a, n) => combined(n, [0.5, a], [0.5, transposed(a, n)]);

/** The matrix of one step of the deviations of x, m and v from their means, and the covariance of its noise. */
function linearised(c, p, follows, u, root, squares) {
  const { d, H, lr, b1, b2 } = c;
  const keep = 1 - lr * c.theta;
  const withM = hasMean(c);
  const withV = squares !== null;
  const size = d * (1 + withM + withV);
  const [old, now] = mixture(c);
  const { A, Q } = spaceOf(size);
  A.fill(0);
  Q.fill(0);
  const v = d * (1 + withM);
  for (let i = 0; i < d; i++) {
    for (let j = 0; j < d; j++) {
      const h = H[i * d + j];
      A[i * size + j] = (i === j ? keep : 0) - p[i] * now * h;
      if (withM) A[(d + i) * size + j] = (1 - b1) * h;
      if (withV) {
        A[(v + i) * size + j] = (1 - b2) * 2 * u[i] * h;
        A[i * size + j] += follows[i] * A[(v + i) * size + j];
      }
    }
    if (withM) {
      A[i * size + d + i] = -p[i] * old;
      A[(d + i) * size + d + i] = b1;
    }
    if (withV) {
      A[(v + i) * size + v + i] = b2;
      A[i * size + v + i] += follows[i] * b2;
    }
    // Noise of the parts of coordinate i, of the form aZ + bq with q the noise of g².
    const a = [-now * p[i] * root[i], withM ? (1 - b1) * root[i] : 0, 0];
    const b = [withV ? (1 - b2) * follows[i] : 0, 0, 1 - b2];
    const index = [i, d + i, v + i];
    for (let s = 0; s < 3; s++) {
      if ((s === 1 && !withM) || (s === 2 && !withV)) continue;
      for (let t = 0; t < 3; t++) {
        if ((t === 1 && !withM) || (t === 2 && !withV)) continue;
        let value = a[s] * a[t] * c.noise[i];
        if (withV) value += b[s] * b[t] * squares[i].rest + (a[s] * b[t] + a[t] * b[s]) * squares[i].skew;
        Q[index[s] * size + index[t]] = value;
      }
    }
  }
  return { A, Q, size };
}

/** Diagonal of HSH, where S is the first block of P. */
function gradientVariances(H, P, d, size) {
  const found = [];
  for (let i = 0; i < d; i++) {
    let sum = 0;
    for (let j = 0; j < d; j++) for (let k = 0; k < d; k++) sum += H[i * d + j] * P[j * size + k] * H[i * d + k];
    found.push(sum);
  }
  return found;
}

/** Whether the factors are computed at step k: at the first 32 and every eighth, or, if `rough`, at ever fewer. */
function isDue(k, rough) {
  if (!rough) return k < 32 || k % 8 === 0;
  return k < 4 || Math.floor(6 * Math.log2(k)) !== Math.floor(6 * Math.log2(k - 1));
}

function advanceLinear(c, y, k, useLaw) {
  const { d, H, lr, b1, b2 } = c;
  const keep = 1 - lr * c.theta;
  const u = gradientAt(c, y.x);
  const size = Math.round(Math.sqrt(y.P.length));
  const [old, now] = mixture(c);
  const direction = u.map((g, i) => (y.m ? old * y.m[i] + now * g : now * g));
  let p = u.map(() => lr);
  const root = u.map(() => 1);
  const follows = u.map(() => 0);
  let squares = null;
  if (y.v) {
    const spread = gradientVariances(H, y.P, d, size);
    const at = d * (1 + hasMean(c));
    const isAdam = c.name === "adamw";
    const first = isAdam ? -Math.expm1((k + y.count + 1) * Math.log(b1)) : 1;
    const second = isAdam ? -Math.expm1((k + y.count + 1) * Math.log(b2)) : 1;
    const weight = (1 - b1) * (1 - b2);
    squares = [];
    p = [];
    for (let i = 0; i < d; i++) {
      const total = spread[i] + c.noise[i];
      const fourth = c.law.kurtosis * c.noise[i] ** 2 + 2 * total * total + 4 * u[i] * u[i] * total;
      const known = Number.isFinite(fourth);
      const rest = known ? Math.max(fourth - 4 * u[i] * u[i] * spread[i], 0) : 0;
      squares.push({ skew: known ? 2 * u[i] * c.noise[i] : 0, rest });
      let together = 0;
      for (let j = 0; j < d; j++) together += H[i * d + j] * y.P[j * size + at + i];
      const single = 4 * u[i] * u[i] * spread[i] + rest;
      const vv =
        b2 * b2 * y.P[(at + i) * size + at + i] + 4 * b2 * (1 - b2) * u[i] * together + (1 - b2) ** 2 * single;
      y.v[i] = b2 * y.v[i] + (1 - b2) * (u[i] * u[i] + total);
      y.lean[i] = b1 * b2 * y.lean[i] + weight * total;
      y.own[i] = b1 * b2 * y.own[i] + weight * (fourth - 4 * u[i] * u[i] * total);
      const share = shareOfRoot(y.v[i] / second, c.eps);
      if (useLaw) {
        if (isDue(k, c.rough))
          y.factors[i] = byLaw(c.law, c.scale[i], y.v[i], u[i], spread[i], b1, b2, k + 1, first, share);
      } else y.factors[i] = byExpansion(y.v[i], vv, y.lean[i] / first, y.own[i] / first, total, share);
      const [pull, wide] = y.factors[i];
      p.push((lr / first / (Math.sqrt(y.v[i] / second) + Math.max(c.eps, LEAST_EPS))) * pull);
      root[i] = Math.sqrt(wide) / pull;
      follows[i] = ((0.5 * share) / Math.max(y.v[i], TINY)) * p[i] * direction[i];
    }
  }
  const { A, Q } = linearised(c, p, follows, u, root, squares);
  y.P = propagated(A, y.P, Q, size);
  if (y.m) y.m = y.m.map((m, i) => b1 * m + (1 - b1) * u[i]);
  y.x = y.x.map((x, i) => keep * x - p[i] * direction[i]);
}

/** At which steps to record: the start, the last, and at most `most` equally spaced ones between. */
export function recordedSteps(steps, most) {
  const every = Math.max(1, Math.ceil(steps / most));
  const found = [];
  for (let k = 0; k < steps; k += every) found.push(k);
  found.push(steps);
  return found;
}

/**
 * Mean loss, and mean and covariance of x, at the steps `at`, which increase from 0.
 * Each is a Float64Array: loss (T), x (T·d), covariance (T·d·d). `rough`, for pictures while a slider moves,
 * takes expectations over the noise by fewer nodes, and the effect of the fluctuation of v at fewer steps.
 */
export function closure(exact, at, rough = false) {
  const { coarse } = exact.law;
  const c = rough ? { ...exact, rough, law: { ...exact.law, rule: coarse, heavy: coarse } } : exact;
  const { d } = c;
  const out = {
    steps: at,
    loss: new Float64Array(at.length),
    x: new Float64Array(at.length * d),
    covariance: new Float64Array(at.length * d * d),
  };
  const y = startMoments(c);
  const useLaw = isAdaptive(c) && lawIsNeeded(c);
  const bySigns = isSign(c);
  let k = 0;
  for (let r = 0; r < at.length; r++) {
    for (; k < at[r]; k++) {
      if (bySigns) advanceSigns(c, y);
      else advanceLinear(c, y, k, useLaw);
    }
    const size = Math.round(Math.sqrt(y.P.length));
    const xx = block(y.P, size, 0, 0, d);
    let loss = lossAt(c, y.x);
    for (let i = 0; i < d; i++) {
      out.x[r * d + i] = y.x[i];
      for (let j = 0; j < d; j++) {
        loss += 0.5 * c.H[i * d + j] * xx[j * d + i];
        out.covariance[(r * d + i) * d + j] = xx[i * d + j];
      }
    }
    out.loss[r] = loss;
  }
  return out;
}

// ── The stationary law ─────────────────────────────────────────────────────────────────────────────────────────────

/** S with S = ASAᵀ + Q by repeated squaring, or null if A is not stable. */
function discreteLyapunov(A, Q, n) {
  let S = Array.from(Q);
  let power = Array.from(A);
  for (let i = 0; i < 60; i++) {
    const added = sandwich(power, S, n);
    S = combined(n, [1, S], [1, added]);
    power = times(power, power, n);
    const norm = Math.max(...power.map(Math.abs));
    if (!(norm < 1e150)) return null;
    if (norm < 1e-18) return even(S, n);
  }
  return null;
}

const largest = (a) => Math.max(...Array.from(a, Math.abs));

function restOfLinear(c, spread, useLaw) {
  const { d, H } = c;
  const inside = diagonalOf(sandwich(H, spread, d), d);
  const p = [];
  const root = [];
  for (let i = 0; i < d; i++) {
    if (!isAdaptive(c)) {
      p.push(c.lr);
      root.push(1);
      continue;
    }
    const square = inside[i] + c.noise[i];
    const [pull, wide] = atRest(c, i, inside[i], shareOfRoot(square, c.eps), useLaw);
    p.push((c.lr * pull) / (Math.sqrt(square) + c.eps));
    root.push(Math.sqrt(wide) / pull);
  }
  const { A, Q, size } = linearised(c, p, null, null, root, null);
  const found = discreteLyapunov(A, Q, size);
  return found && block(found, size, 0, 0, d);
}

function restOfSigns(c, spread) {
  const { d, H, lr } = c;
  const keep = 1 - lr * c.theta;
  const s = mixedSigns(c, c.start.map(() => 0), sandwich(H, spread, d), 1, false);
  const jacobian = rowsTimes(s.slope, H, d);
  if (d === 1) return [(lr * lr * s.covariance[0]) / (1 - keep * keep + 2 * keep * lr * jacobian[0])];
  if (H[1] === 0) {
    const own = [0, 3].map((i) => (lr * lr * s.covariance[i]) / (1 - keep * keep + 2 * keep * lr * jacobian[i]));
    return diagonal(own);
  }
  const factor = combined(d, [1, diagonal([keep, keep])], [-lr, jacobian]);
  const rest = combined(d, [1, s.covariance], [-1, sandwich(jacobian, spread, d)]);
  return discreteLyapunov(factor, rest.map((v) => lr * lr * v), d);
}

function restOfMixedSigns(c) {
  const { d, H, lr } = c;
  const forget = memoryOf(c);
  const keep = 1 - lr * c.theta;
  const fresh = 1 - forget;
  const [old, now] = mixture(c);
  const one = diagonal(c.start.map(() => 1));
  const noise = diagonal(c.noise);
  const size = 2 * d;
  let P = zeros(size * size);
  place(P, size, 0, 0, one.map((v) => lr * lr * v), d);
  place(P, size, d, d, noise.map((v) => (v * fresh) / (1 + forget)), d);
  for (let round = 0; round < 100; round++) {
    const [xx, xm, mm] = [block(P, size, 0, 0, d), block(P, size, 0, d, d), block(P, size, d, d, d)];
    const through = times(H, xm, d);
    const argument = combined(
      d,
      [old * old, mm],
      [old * now, through],
      [old * now, transposed(through, d)],
      [now * now, sandwich(H, xx, d)],
    );
    const s = mixedSigns(c, c.start.map(() => 0), argument, now, true);
    const explained = times(rowsTimes(s.slope, argument, d), diagonal(s.slope), d);
    const A = zeros(size * size);
    const Q = zeros(size * size);
    place(A, size, 0, 0, combined(d, [keep, one], [-lr * now, rowsTimes(s.slope, H, d)]), d);
    place(A, size, 0, d, rowsTimes(s.slope, one, d).map((v) => -lr * old * v), d);
    place(A, size, d, 0, H.map((v) => fresh * v), d);
    place(A, size, d, d, one.map((v) => forget * v), d);
    place(Q, size, 0, 0, combined(d, [lr * lr, s.covariance], [-lr * lr, explained]), d);
    const cross = diagonal(s.fresh).map((v) => -lr * fresh * v);
    place(Q, size, 0, d, cross, d);
    place(Q, size, d, 0, cross, d);
    place(Q, size, d, d, noise.map((v) => fresh * fresh * v), d);
    const found = discreteLyapunov(A, Q, size);
    if (!found) return byRunning(c);
    const own = block(found, size, 0, 0, d);
    const change = largest(combined(d, [1, own], [-1, xx]));
    const share = round < 20 ? 1 : 0.2;
    P = combined(size, [1 - share, P], [share, found]);
    if (change <= 1e-6 * largest(own)) return own;
  }
  return byRunning(c);
}

function byRunning(c) {
  const still = { ...c, start: c.start.map(() => 0) };
  const y = startMoments(still);
  let before = zeros(c.d * c.d);
  for (let n = 0; n < 40; n++) {
    for (let k = 0; k < 500; k++) advanceSigns(still, y);
    const size = Math.round(Math.sqrt(y.P.length));
    const here = block(y.P, size, 0, 0, c.d);
    if (!here.every(Number.isFinite)) return null;
    if (largest(combined(c.d, [1, here], [-1, before])) <= 1e-3 * largest(here)) return here;
    before = here;
  }
  return null;
}

/** Covariance and expected loss at rest, the mean of which is 0; null if there is none. */
export function stationary(c) {
  if (whyNoClosure(c) || Math.min(...c.curvature) + c.theta <= 1e-7 * Math.max(...c.curvature)) return null;
  const { d } = c;
  let spread = null;
  if (c.name === "lion" || c.name === "signum") spread = restOfMixedSigns(c);
  else {
    const useLaw = isAdaptive(c) && lawIsNeeded(c);
    const linear = c.name === "sgd" || c.name === "momentum";
    let at = diagonal(c.start.map(() => (linear ? 0 : c.lr * c.lr)));
    let wider = 0;
    for (let round = 0; round < 100; round++) {
      const next = c.name === "signsgd" ? restOfSigns(c, at) : restOfLinear(c, at, useLaw);
      if (!next) {
        if (linear || wider === 12) break;
        wider++;
        at = at.map((v) => 4 * v);
        continue;
      }
      if (!Array.from(next).every(Number.isFinite)) break;
      if (largest(combined(d, [1, next], [-1, at])) <= 1e-6 * largest(next)) {
        spread = next;
        break;
      }
      at = round < 20 ? next : combined(d, [0.8, at], [0.2, next]);
    }
    if (!spread && c.name === "signsgd") spread = byRunning(c);
  }
  if (!spread) return null;
  let loss = 0;
  for (let i = 0; i < d; i++) for (let j = 0; j < d; j++) loss += 0.5 * c.H[i * d + j] * spread[j * d + i];
  return { covariance: Array.from(spread), loss };
}

// ── Phases ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** |Y| of every coordinate at a point: |∂f|/(√2 σ), for other noise erf⁻¹|E sign(g)|. */
export function signal(c, x) {
  return gradientAt(c, x).map((g, i) => {
    const s = g / c.scale[i];
    return Math.abs(c.law.normal ? s / Math.SQRT2 : erfinv(c.law.meanSign(s)));
  });
}

/** The phase of a coordinate, 1, 2 or 3, from its |Y|. */
export const phaseOf = (y) => (y > 1.5 ? 1 : y >= 1 ? 2 : 3);

/** The gradient, in units of the noise's scale, at which |Y| has a value. */
export function gradientOfSignal(law, value) {
  if (law.normal) return Math.SQRT2 * value;
  let low = 0;
  let high = 1e4;
  for (let i = 0; i < 60; i++) {
    const middle = 0.5 * (low + high);
    if (erfinv(law.meanSign(middle)) < value) low = middle;
    else high = middle;
  }
  return high;
}

// ── Bounds of the mean loss, of the algorithm itself ───────────────────────────────────────────────────────────────

function pairAtRest(pull, c) {
  const fresh = 1 - c.b1;
  const ht = c.lr * c.theta;
  const top = 1 + c.b1 - c.b1 * ht;
  const bottom = 2 * (1 + c.b1) - c.lr * pull * fresh - ht * (1 + c.b1);
  if (!(bottom > 0 && top > 0)) return Infinity;
  return (c.lr * fresh * top) / ((pull + c.theta) * (fresh + c.b1 * ht) * bottom);
}

/** The bound: its asymptote and, if it holds from the start, its value at every step of `at`; or the reason why not. */
export function bound(c, at) {
  const none = (reason) => ({ loss: null, asymptote: Infinity, reason });
  const mu = Math.min(...c.curvature);
  const smooth = Math.max(...c.curvature);
  const trace = c.curvature.reduce((a, b) => a + b, 0);
  const separable = c.d === 1 || c.H[1] === 0;
  const u = gradientAt(c, c.start).map(Math.abs);
  let rate;
  let drive = trace;
  let quadratic = 0;
  let late = "";
  if (!(mu > 0)) return none("it needs positive curvature");
  if (c.name === "sgd") {
    if (c.theta > 0) return none("it is known only without weight decay");
    const variance = Math.max(...c.noise);
    if (!Number.isFinite(variance)) return none("the noise has no variance");
    if (c.lr * smooth >= 2) return none("steps are unstable: ηL ≥ 2");
    rate = 2 * mu;
    drive = trace * variance;
    quadratic = smooth / 2;
  } else if (c.name === "signsgd") {
    if (c.theta > 0) return none("it is known only without weight decay");
    const widest = Math.max(Math.SQRT2, ...u.map((g, i) => g / c.scale[i]));
    const slope = Math.min(...c.scale.map((s) => c.law.meanSign(widest) / (widest * s)));
    rate = 2 * mu * slope;
    if (!separable) {
      const sums = Math.abs(c.H[0]) + Math.abs(c.H[3]) + 2 * Math.abs(c.H[1]);
      const box = Math.min(sums, c.d * smooth);
      const coupling = c.lr * smooth * Math.max(...c.scale.map((s) => c.law.density(0) / s));
      const slower = rate * (1 - coupling);
      if (slower > 0 && trace / slower < box / rate) rate = slower;
      else drive = box;
    }
    if (c.lr * rate > 1) return none("steps are too large");
  } else if (isAdaptive(c)) {
    const variance = Math.max(...c.noise);
    if (!Number.isFinite(variance)) return none("the noise has no variance");
    const scale = Math.sqrt(variance) + c.eps;
    const ratio = Math.max(...u.map((g, i) => g / Math.sqrt(c.noise[i])));
    let excess = 1;
    for (let i = 0; i <= 64; i++) {
      const pull = (mu + ((smooth - mu) * i) / 64) / scale;
      excess = Math.max(excess, pairAtRest(pull, c) / ((0.5 * c.lr) / (pull + c.theta)));
    }
    if (!Number.isFinite(excess)) return none("steps are unstable");
    quadratic = (1 - 1 / excess) / c.lr;
    const useLaw = lawIsNeeded(c);
    const factors = c.scale.map((_, i) => atRest(c, i, 0, 1, useLaw));
    const pull = Math.min(...factors.map((f) => f[0]));
    const spread = Math.max(...factors.map((f) => f[1]));
    rate = ((2 * mu) / scale + c.theta * (1 + mu / smooth)) * Math.min(pull, 1);
    drive = trace * Math.max(spread / Math.max(pull, 1), Math.min(pull, 1));
    if (c.name === "adamw") late = "it holds as t → ∞ only";
    else if (c.v0 === "zero") late = "v starts at 0, so it holds as t → ∞ only";
    else if (ratio >= 0.1) late = "noise does not dominate at the start, so it holds as t → ∞ only";
  } else return none("none is known for this optimizer");
  const slowed = rate * (1 - c.lr * quadratic);
  const rest = (0.5 * c.lr * drive) / slowed;
  if (late) return { loss: null, asymptote: rest, reason: late };
  const start = lossAt(c, c.start);
  const loss = Float64Array.from(at, (k) => {
    const kept = (1 - c.lr * slowed) ** k;
    return start * kept + rest * (1 - kept);
  });
  return { loss, asymptote: rest, reason: "" };
}
