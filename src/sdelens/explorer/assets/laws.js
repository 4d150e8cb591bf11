// Special functions in double precision, quadratures, and the laws of the gradient noise. No document is used here.

const TWO_OVER_ROOT_PI = 2 / Math.sqrt(Math.PI);
const ERF_NODES = 128;
const ERF_END = 6.2;
export const TINY = 2.2250738585072014e-308;

// erf at multiples of 1/128 by its series e^{-x²} Σ 2ⁿ x^{2n+1}/(2n+1)!!, and its derivative there.
const ERF_TABLE = (() => {
  const size = Math.ceil(ERF_END * ERF_NODES) + 2;
  const value = new Float64Array(size);
  const slope = new Float64Array(size);
  for (let i = 0; i < size; i++) {
    const x = i / ERF_NODES;
    let term = x;
    let sum = x;
    for (let n = 1; term > 1e-18 * sum; n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    slope[i] = TWO_OVER_ROOT_PI * Math.exp(-x * x);
    value[i] = slope[i] * sum;
  }
  return { value, slope };
})();

/** The error function: Taylor's series of order 6 about the nearest node of a table. */
export function erf(x) {
  const a = Math.abs(x);
  if (!(a < ERF_END)) return x > 0 ? 1 : x < 0 ? -1 : x;
  const i = Math.round(a * ERF_NODES);
  const y = i / ERF_NODES;
  const d = a - y;
  const yy = y * y;
  const h2 = -y;
  const h3 = (2 * yy - 1) / 3;
  const h4 = (y * (3 - 2 * yy)) / 6;
  const h5 = (4 * yy * yy - 12 * yy + 3) / 30;
  const part = d * (1 + d * (h2 + d * (h3 + d * (h4 + d * h5))));
  const found = ERF_TABLE.value[i] + ERF_TABLE.slope[i] * part;
  return x < 0 ? -found : found;
}

/** The inverse of erf, by Newton's method; infinite at ±1. */
export function erfinv(value) {
  const target = Math.abs(value);
  if (target >= 1) return value > 0 ? Infinity : -Infinity;
  const log = Math.log1p(-target * target);
  const half = 4.33 + log / 2;
  let y = Math.sqrt(Math.max(Math.sqrt(half * half - log / 0.147) - half, 0));
  if (target < 1e-3) y = target / TWO_OVER_ROOT_PI;
  for (let i = 0; i < 40; i++) {
    const residual = (erf(y) - target) / (TWO_OVER_ROOT_PI * Math.exp(-y * y));
    const step = residual / (1 + y * residual);
    y -= step;
    if (Math.abs(step) < 1e-15 * Math.max(y, 1e-300)) break;
  }
  return value < 0 ? -y : y;
}

/** log Γ(x) for x > 0: Stirling's series after a shift beyond 12. */
export function logGamma(x) {
  let shift = 0;
  let at = x;
  while (at < 12) {
    shift += Math.log(at);
    at += 1;
  }
  const r = 1 / (at * at);
  const series = (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * (1 / 1680 - r / 1188)))) / at;
  return (at - 0.5) * Math.log(at) - at + 0.5 * Math.log(2 * Math.PI) + series - shift;
}

/** The regularised incomplete beta function I_x(a, b), by its continued fraction on the side where that converges. */
export function betaInc(a, b, x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - betaInc(b, a, 1 - x);
  const front = Math.exp(
    logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x),
  );
  let c = 1;
  let d = 1 / (1 - ((a + b) * x) / (a + 1));
  let h = d;
  for (let m = 1; m < 400; m++) {
    for (const f of [
      (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m)),
      (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1)),
    ]) {
      d = 1 / (1 + f * d);
      c = 1 + f / c;
      h *= c * d;
    }
    if (Math.abs(c * d - 1) < 1e-15) break;
  }
  return (front * h) / a;
}

/** Nodes and weights of the Gauss rule of `size` nodes whose orthonormal polynomials have the off-diagonals `b(k)`. */
function gaussRule(size, b, reach) {
  const square = Float64Array.from({ length: size }, (_, k) => b(k) ** 2);
  const below = (x) => {
    // Sturm's count of eigenvalues of the Jacobi matrix below x.
    let count = 0;
    let q = 1;
    for (let k = 0; k < size; k++) {
      q = -x - (k ? square[k] / q : 0);
      if (q === 0) q = 1e-300;
      if (q < 0) count++;
    }
    return count;
  };
  const nodes = new Float64Array(size);
  const weights = new Float64Array(size);
  for (let i = 0; i < size; i++) {
    let low = -reach;
    let high = reach;
    for (let n = 0; n < 70; n++) {
      const middle = 0.5 * (low + high);
      if (below(middle) > i) high = middle;
      else low = middle;
    }
    nodes[i] = 0.5 * (low + high);
  }
  for (let i = 0; i < size; i++) nodes[i] = 0.5 * (nodes[i] - nodes[size - 1 - i]);
  for (let i = 0; i < size; i++) {
    let before = 0;
    let here = 1;
    let sum = 0;
    for (let k = 0; k < size; k++) {
      sum += here * here;
      const next = (nodes[i] * here - (k ? b(k) * before : 0)) / b(k + 1);
      before = here;
      here = next;
    }
    weights[i] = 1 / sum;
  }
  for (let i = size >> 1; i < size; i++) nodes[i] = -nodes[size - 1 - i];
  if (size % 2) nodes[size >> 1] = 0;
  return { nodes, weights };
}

const hermite = (size) => gaussRule(size, (k) => Math.sqrt(k), 2 * Math.sqrt(size) + 2);
const legendre = (size) => gaussRule(size, (k) => k / Math.sqrt(4 * k * k - 1), 1.0000001);

export const HERMITE_48 = hermite(48);
export const LEGENDRE_24 = legendre(24);
export const HERMITE_20 = hermite(20);
const HERMITE_32 = hermite(32);
const HERMITE_64 = hermite(64);
const LEGENDRE_64 = legendre(64);

/** The nodes of a rule whose weights matter. */
function pruned({ nodes, weights }) {
  const kept = Array.from(nodes.keys()).filter((i) => weights[i] * Math.max(1, nodes[i] ** 2) > 1e-17);
  return { nodes: Float64Array.from(kept, (i) => nodes[i]), weights: Float64Array.from(kept, (i) => weights[i]) };
}

// ── Laws: Z = σX, one standard law X each; s stands for z/σ ────────────────────────────────────────────────────────

const GAUSSIAN = {
  name: "gaussian",
  normal: true,
  variance: 1,
  kurtosis: 0,
  meanSign: (s) => erf(s / Math.SQRT2),
  density: (s) => Math.exp(-0.5 * s * s) / Math.sqrt(2 * Math.PI),
  signedMean: (s) => 2 * (Math.exp(-0.5 * s * s) / Math.sqrt(2 * Math.PI)),
  rule: HERMITE_64,
  coarse: HERMITE_32,
  sample: (random) => random.normal(),
};

/** Nodes on (0, 1) twice as dense towards 0, where the tail is. */
function laplaceRule(half) {
  const size = half.nodes.length;
  const nodes = new Float64Array(2 * size);
  const weights = new Float64Array(2 * size);
  for (let i = 0; i < size; i++) {
    const share = (half.nodes[i] + 1) / 2;
    nodes[i] = -Math.log(share * share);
    nodes[size + i] = -nodes[i];
    weights[i] = weights[size + i] = share * half.weights[i];
  }
  return { nodes, weights };
}

const LAPLACE = {
  name: "laplace",
  normal: false,
  variance: 2,
  kurtosis: 3,
  meanSign: (s) => -Math.sign(s) * Math.expm1(-Math.abs(s)),
  density: (s) => 0.5 * Math.exp(-Math.abs(s)),
  signedMean: (s) => (1 + Math.abs(s)) * Math.exp(-Math.abs(s)),
  rule: laplaceRule(LEGENDRE_64),
  coarse: laplaceRule(LEGENDRE_24),
  sample: (random) => {
    const size = -Math.log(random.uniform());
    return random.uniform() < 0.5 ? size : -size;
  },
};

function logNormOfT(df) {
  if (df > 20) {
    const r = 1 / df;
    return Math.log1p(-r / 4 + (r * r) / 32 + (5 * r * r * r) / 128) - 0.5 * Math.log(2 * Math.PI);
  }
  return logGamma((df + 1) / 2) - logGamma(df / 2) - 0.5 * Math.log(df * Math.PI);
}

function tMeanSign(df) {
  if (Number.isInteger(df) && df <= 32) {
    // A finite sum in cos θ with tan θ = s/√ν (Abramowitz and Stegun 26.7.3-4).
    const root = Math.sqrt(df);
    return (s) => {
      const tangent = Math.max(-1e18, Math.min(1e18, s)) / root;
      const square = 1 / (1 + tangent * tangent);
      let total = 0;
      if (df % 2) {
        for (let n = df - 3; n >= 0; n -= 2) total = n < df - 3 ? 1 + ((n + 2) / (n + 3)) * square * total : 1;
        return (2 / Math.PI) * (Math.atan(tangent) + tangent * square * total);
      }
      for (let n = df - 2; n >= 0; n -= 2) total = n < df - 2 ? 1 + ((n + 1) / (n + 2)) * square * total : 1;
      return Math.max(-1, Math.min(1, tangent * Math.sqrt(square) * total));
    };
  }
  return (s) => {
    const square = Math.min(Math.abs(s), 1e18) ** 2;
    const part =
      square < df
        ? betaInc(0.5, df / 2, square / (df + square))
        : 1 - betaInc(df / 2, 0.5, df / (df + square));
    return Math.sign(s) * part;
  };
}

/** By θ with s = √ν tan θ for ν ≤ 8, otherwise by v with s = 2v/(1 − v²). */
function tRule(df, density, rule) {
  const size = rule.nodes.length;
  const nodes = new Float64Array(2 * size);
  const weights = new Float64Array(2 * size);
  let total = 0;
  for (let i = 0; i < size; i++) {
    const half = (rule.nodes[i] + 1) / 2;
    const weight = rule.weights[i] / 2;
    if (df <= 8) {
      const off = (Math.PI / 2) * half ** 3;
      nodes[i] = Math.sqrt(df) / Math.tan(off);
      weights[i] = Math.sin(off) ** (df - 1) * half * half * weight;
    } else {
      nodes[i] = (2 * half) / (1 - half * half);
      weights[i] = (density(nodes[i]) * weight * (1 + half * half)) / (1 - half * half) ** 2;
    }
    total += 2 * weights[i];
  }
  for (let i = 0; i < size; i++) {
    weights[i] /= total;
    nodes[size + i] = -nodes[i];
    weights[size + i] = weights[i];
  }
  return { nodes, weights };
}

function studentT(df) {
  const law = standardT(df);
  law.heavy = pruned(law.rule);
  return law;
}

function standardT(df) {
  const norm = logNormOfT(df);
  const density = (s) => Math.exp(norm - ((df + 1) / 2) * Math.log1p((s * s) / df));
  return {
    name: "student-t",
    df,
    normal: false,
    variance: df > 2 ? df / (df - 2) : Infinity,
    kurtosis: df > 4 ? 6 / (df - 4) : Infinity,
    meanSign: tMeanSign(df),
    density,
    signedMean: (s) => (df > 1 ? (2 * density(s) * (df + s * s)) / (df - 1) : Infinity),
    rule: tRule(df, density, LEGENDRE_64),
    coarse: tRule(df, density, LEGENDRE_24),
    sample: (random) => {
      // Bailey's polar method (1994), exact from two uniform numbers.
      const growth = -Math.log(random.uniform()) / df;
      const radius = Math.sqrt(df * Math.expm1(2 * growth));
      return radius * Math.cos(2 * Math.PI * random.uniform());
    },
  };
}

const KNOWN_T = new Map();

for (const law of [GAUSSIAN, LAPLACE]) law.heavy = pruned(law.rule);

/** The standard law of that name; `df` is ν of Student's t. */
export function lawOf(name, df) {
  if (name === "laplace") return LAPLACE;
  if (name !== "student-t") return GAUSSIAN;
  if (!KNOWN_T.has(df)) KNOWN_T.set(df, studentT(df));
  return KNOWN_T.get(df);
}

/** Random numbers from a seed: xorshift with 128 bits of state (Marsaglia 2003), normal ones by Box and Muller (1958). */
export class Random {
  constructor(seed) {
    let mixed = (seed >>> 0) + 0x9e3779b9;
    const next = () => {
      // Every bit of the seed reaches every word of the state.
      mixed = (mixed + 0x9e3779b9) | 0;
      let z = mixed;
      z = Math.imul(z ^ (z >>> 16), 0x45d9f3b);
      z = Math.imul(z ^ (z >>> 15), 0x45d9f3b);
      return z ^ (z >>> 16);
    };
    this.a = next() | 1;
    this.b = next();
    this.c = next();
    this.d = next();
    this.spare = NaN;
    for (let i = 0; i < 20; i++) this.bits();
  }

  bits() {
    let t = this.a ^ (this.a << 11);
    this.a = this.b;
    this.b = this.c;
    this.c = this.d;
    t ^= t >>> 8;
    this.d = this.d ^ (this.d >>> 19) ^ t;
    return this.d >>> 0;
  }

  /** In the open interval (0, 1), on a grid of 2⁻³². */
  uniform() {
    return (this.bits() + 0.5) * 2.3283064365386963e-10;
  }

  normal() {
    if (this.spare === this.spare) {
      const kept = this.spare;
      this.spare = NaN;
      return kept;
    }
    const radius = Math.sqrt(-2 * Math.log(this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }
}
