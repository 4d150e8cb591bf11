// Drawing on canvas: the landscape with its particles, and the loss curves. Everything drawn is passed as an argument.
import { gradientOfSignal, isSign, lossAt } from "./engine.js";

export const LOOKS = {
  optimizer: { label: "optimizer", dash: [], width: 2.2 },
  sde: { label: "SDE", dash: [7, 3], width: 1.8 },
  malladi2022: { label: "earlier SDE", dash: [1.5, 2.5], width: 2 },
  prediction: { label: "closure", dash: [5, 2, 1.5, 2], width: 1.8 },
  bound: { label: "bound", dash: [2, 3], width: 1.4 },
  rescaled: { label: "at batch δB", dash: [10, 3], width: 1.8 },
};

/** The colours of the page as it is shown now. */
export function coloursOf(element) {
  const style = getComputedStyle(element);
  const names = ["ink", "muted", "line", "paper", "card", ...Object.keys(LOOKS), "phase1", "phase2", "phase3"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** The canvas at the resolution of the screen: its context, width and height in CSS pixels. */
export function prepared(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const dots = window.devicePixelRatio || 1;
  const [w, h] = [Math.max(Math.round(width), 1), Math.max(Math.round(height), 1)];
  if (canvas.width !== Math.round(w * dots) || canvas.height !== Math.round(h * dots)) {
    canvas.width = Math.round(w * dots);
    canvas.height = Math.round(h * dots);
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(dots, 0, 0, dots, 0, 0);
  ctx.clearRect(0, 0, w, h);
  ctx.lineJoin = ctx.lineCap = "round";
  return { ctx, w, h };
}

const FONT = "12px system-ui, sans-serif";

export function nice(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e4 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  return text.replace("e+", "e").replace("-", "−").replace("e-", "e−");
}

function ticks(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// ── The landscape ──────────────────────────────────────────────────────────────────────────────────────────────────

const standardDeviation = (covariance, d, i) => Math.sqrt(Math.max(covariance[i * d + i], 0));

/**
 * What the landscape shows: its centre, and half of the smaller side. The whole run is the box of start, minimum, mean
 * path and ellipses; at rest, 4.5 standard deviations about the minimum.
 */
export function windowOf(view, c, curve, rest) {
  const centre = [];
  let half = 1e-9;
  for (let i = 0; i < c.d; i++) {
    const sd = rest ? standardDeviation(rest.covariance, c.d, i) : 0;
    let [low, high] = [-4.5 * sd, 4.5 * sd];
    if (view !== "rest" || !rest) {
      low = Math.min(-3 * sd, c.start[i], 0);
      high = Math.max(3 * sd, c.start[i], 0);
      const most = 2 * (high - low); // where paths diverge, the picture stays
      for (let r = 0; curve && r < curve.loss.length; r += 8) {
        const x = curve.x[r * c.d + i];
        const wide = 2.5 * Math.sqrt(Math.max(curve.covariance[(r * c.d + i) * c.d + i], 0));
        if (!Number.isFinite(x + wide)) break;
        low = Math.min(low, Math.max(x - wide, -most));
        high = Math.max(high, Math.min(x + wide, most));
      }
    }
    centre.push((low + high) / 2);
    half = Math.max(half, (high - low) / 2);
  }
  return { centre, half: 1.14 * half };
}

function ellipse(ctx, place, scale, centre, covariance, sigmas) {
  const [a, b, , e] = covariance;
  const half = (a + e) / 2;
  const root = Math.hypot((a - e) / 2, b);
  const angle = 0.5 * Math.atan2(2 * b, a - e);
  const axes = [half + root, half - root].map((v) => sigmas * Math.sqrt(Math.max(v, 0)) * scale);
  ctx.beginPath();
  ctx.ellipse(...place(centre), axes[0], axes[1], -angle, 0, 2 * Math.PI);
  ctx.stroke();
}

/** The particles of every model at a record, the mean path, the closure's ellipse there and the one at rest. */
export function drawLandscape(canvas, scene) {
  const { ctx, w, h } = prepared(canvas);
  if (scene.c.d === 1) drawLine(ctx, w, h, scene);
  else drawPlane(ctx, w, h, scene);
}

function drawPlane(ctx, w, h, scene) {
  const { c, colours, curve, rest, frame, particles, shown } = scene;
  const { centre, half } = scene.window;
  const scale = Math.min(w, h) / 2 / half;
  const left = w / 2 - centre[0] * scale;
  const middle = h / 2 + centre[1] * scale;
  const place = ([x, y]) => [left + x * scale, middle - y * scale];
  contours(ctx, w, h, scene, scale, place);
  axes(ctx, w, h, colours, { left, middle, scale });
  if (isSign(c)) phaseLines(ctx, w, h, scene, place);
  ctx.globalAlpha = scene.stale ? 0.25 : 0.7;
  for (const name of ["malladi2022", "sde", "optimizer"]) {
    const positions = particles?.[name];
    if (!positions || !shown(name)) continue;
    const count = positions.length / scene.records / 2;
    ctx.fillStyle = colours[name];
    const radius = name === "optimizer" ? 1.7 : 1.9;
    ctx.beginPath();
    for (let j = 0; j < count; j++) {
      const x = left + positions[2 * frame * count + j] * scale;
      const y = middle - positions[(2 * frame + 1) * count + j] * scale;
      if (!(x > -5 && x < w + 5 && y > -5 && y < h + 5)) continue;
      ctx.moveTo(x + radius, y);
      ctx.arc(x, y, radius, 0, 2 * Math.PI);
    }
    ctx.fill();
  }
  ctx.globalAlpha = 1;
  if (rest) {
    ctx.strokeStyle = colours.muted;
    ctx.setLineDash([4, 4]);
    ctx.lineWidth = 1.3;
    ellipse(ctx, place, scale, [0, 0], rest.covariance, 2);
    ctx.setLineDash([]);
  }
  if (curve && shown("prediction")) {
    ctx.strokeStyle = colours.prediction;
    ctx.lineWidth = 1.8;
    ctx.beginPath();
    for (let r = 0; r <= frame; r++) ctx.lineTo(...place([curve.x[2 * r], curve.x[2 * r + 1]]));
    ctx.stroke();
    const covariance = curve.covariance.subarray(4 * frame, 4 * frame + 4);
    ctx.lineWidth = 2;
    ellipse(ctx, place, scale, [curve.x[2 * frame], curve.x[2 * frame + 1]], covariance, 2);
  }
  const [sx, sy] = place(c.start);
  ctx.strokeStyle = colours.ink;
  ctx.fillStyle = colours.paper;
  ctx.lineWidth = 1.8;
  ctx.beginPath();
  ctx.arc(sx, sy, 5.5, 0, 2 * Math.PI);
  ctx.fill();
  ctx.stroke();
}

function contours(ctx, w, h, { c, colours }, scale, place) {
  const [first, second] = c.curvature;
  const angle = 0.5 * Math.atan2(2 * c.H[1], c.H[0] - c.H[3]);
  const long = c.H[0] * Math.cos(angle) ** 2 + 2 * c.H[1] * Math.sin(angle) * Math.cos(angle) + c.H[3] * Math.sin(angle) ** 2;
  const short = first + second - long;
  const [x, y] = place([0, 0]);
  const far = Math.max(Math.hypot(x, y), Math.hypot(w - x, y), Math.hypot(x, h - y), Math.hypot(w - x, h - y)) / scale;
  const top = 0.5 * Math.max(first, second) * far * far;
  ctx.lineWidth = 1;
  ctx.strokeStyle = colours.line;
  for (let n = 0; n < 18; n++) {
    const level = top * 0.55 ** n;
    ctx.beginPath();
    ctx.ellipse(x, y, Math.sqrt((2 * level) / long) * scale, Math.sqrt((2 * level) / short) * scale, -angle, 0, 2 * Math.PI);
    ctx.stroke();
  }
}

function axes(ctx, w, h, colours, { left, middle, scale }) {
  ctx.font = FONT;
  ctx.fillStyle = colours.muted;
  ctx.textAlign = "center";
  for (const v of ticks(-left / scale, (w - left) / scale, 5)) {
    const x = left + v * scale;
    if (x > 40 && x < w - 40) ctx.fillText(nice(v), x, h - 6);
  }
  ctx.textAlign = "left";
  for (const v of ticks((middle - h) / scale, middle / scale, 5)) {
    const y = middle - v * scale;
    if (y > 34 && y < h - 24) ctx.fillText(nice(v), 6, y + 4);
  }
  ctx.font = `italic ${FONT}`;
  ctx.fillText("x₂", 6, 16);
  ctx.textAlign = "right";
  ctx.fillText("x₁", w - 6, h - 6);
}

function phaseLines(ctx, w, h, { c, colours }, place) {
  const far = 1e3;
  ctx.lineWidth = 1;
  for (const [value, name] of [
    [1.5, "phase1"],
    [1, "phase3"],
  ]) {
    ctx.strokeStyle = colours[name];
    const limit = gradientOfSignal(c.law, value);
    for (let i = 0; i < 2; i++) {
      const [a, b] = [c.H[2 * i], c.H[2 * i + 1]];
      const norm = a * a + b * b;
      for (const side of [-1, 1]) {
        const level = side * limit * c.scale[i];
        const [px, py] = [(a * level) / norm, (b * level) / norm];
        ctx.beginPath();
        ctx.moveTo(...place([px - b * far, py + a * far]));
        ctx.lineTo(...place([px + b * far, py - a * far]));
        ctx.stroke();
      }
    }
  }
}

function drawLine(ctx, w, h, scene) {
  const { c, colours, curve, rest, frame, particles, shown } = scene;
  const [middle] = scene.window.centre;
  const reach = scene.window.half;
  const floor = h * 0.58;
  const bottom = h - 26;
  const scale = w / 2 / reach;
  const at = (x) => w / 2 + (x - middle) * scale;
  const across = (share) => middle + (2 * share - 1) * reach;
  const top = lossAt(c, [Math.abs(middle) + reach]);
  const height = (x) => floor - (lossAt(c, [x]) / top) * (floor - 16);
  ctx.strokeStyle = colours.muted;
  ctx.lineWidth = 1.5;
  ctx.beginPath();
  for (let i = 0; i <= 120; i++) ctx.lineTo((w * i) / 120, height(across(i / 120)));
  ctx.stroke();
  ctx.lineWidth = 1;
  ctx.strokeStyle = colours.line;
  ctx.beginPath();
  ctx.moveTo(0, bottom);
  ctx.lineTo(w, bottom);
  ctx.stroke();
  ctx.font = FONT;
  ctx.fillStyle = colours.muted;
  ctx.textAlign = "center";
  for (const v of ticks(middle - reach, middle + reach, 6)) if (at(v) > 26 && at(v) < w - 40) ctx.fillText(nice(v), at(v), h - 8);
  ctx.textAlign = "left";
  ctx.fillText("loss f(x)", 6, 16);
  ctx.fillText("density of x", 6, floor + 30);
  ctx.textAlign = "right";
  ctx.font = `italic ${FONT}`;
  ctx.fillText("x", w - 6, h - 8);
  const normal = (mean, variance) => (x) => Math.exp((-0.5 * (x - mean) ** 2) / variance) / Math.sqrt(2 * Math.PI * variance);
  const bins = 90;
  const histograms = {};
  let most = 0;
  for (const name of ["malladi2022", "sde", "optimizer"]) {
    const positions = particles?.[name];
    if (!positions || !shown(name)) continue;
    const count = positions.length / scene.records;
    const tally = new Float64Array(bins);
    const lift = { optimizer: -5, sde: 5, malladi2022: 11 }[name];
    ctx.fillStyle = colours[name];
    ctx.globalAlpha = scene.stale ? 0.2 : 0.55;
    for (let j = 0; j < count; j++) {
      const x = positions[frame * count + j];
      const bin = Math.floor((((x - middle) / reach + 1) / 2) * bins);
      if (bin < 0 || bin >= bins) continue;
      tally[bin] += bins / (2 * reach * count);
      ctx.beginPath();
      ctx.arc(at(x), height(x) + lift, 1.8, 0, 2 * Math.PI);
      ctx.fill();
    }
    ctx.globalAlpha = 1;
    histograms[name] = tally;
    most = Math.max(most, ...tally);
  }
  const variance = curve ? Math.max(curve.covariance[frame], (reach / 400) ** 2) : 0;
  if (rest) most = Math.max(most, normal(0, rest.covariance[0])(0));
  if (curve && curve.covariance[frame] > 0) most = Math.min(Math.max(most, normal(0, variance)(0)), 4 * most || Infinity);
  const up = (value) => bottom - Math.min(value / (most || 1), 1.05) * (bottom - floor - 26);
  const smooth = (density, colour, dash) => {
    ctx.strokeStyle = colour;
    ctx.setLineDash(dash);
    ctx.lineWidth = 1.8;
    ctx.beginPath();
    for (let i = 0; i <= 480; i++) ctx.lineTo((w * i) / 480, up(density(across(i / 480))));
    ctx.stroke();
    ctx.setLineDash([]);
  };
  for (const [name, tally] of Object.entries(histograms)) {
    ctx.strokeStyle = colours[name];
    ctx.lineWidth = 1.4;
    ctx.beginPath();
    for (let b = 0; b < bins; b++) {
      ctx.lineTo((w * b) / bins, up(tally[b]));
      ctx.lineTo((w * (b + 1)) / bins, up(tally[b]));
    }
    ctx.stroke();
  }
  if (rest) smooth(normal(0, rest.covariance[0]), colours.muted, [4, 4]);
  if (curve && shown("prediction")) smooth(normal(curve.x[frame], variance), colours.prediction, []);
  ctx.fillStyle = colours.paper;
  ctx.strokeStyle = colours.ink;
  ctx.beginPath();
  ctx.arc(at(c.start[0]), height(c.start[0]), 5.5, 0, 2 * Math.PI);
  ctx.fill();
  ctx.stroke();
}

// ── The loss curves ────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * `scene.curves` is a list of {name, time, loss}; `scene.differences` of {name, time, value} relative to the optimizer;
 * `scene.band` is the half-width of the 99 % interval of the optimizer's mean, relative to it.
 */
export function drawCurves(canvas, scene) {
  const { ctx, w, h } = prepared(canvas);
  const { colours, end } = scene;
  const left = 58;
  const right = w < 430 ? 74 : 88;
  const strip = scene.phases ? 15 * scene.phases.length + 8 : 0;
  const split = Math.round(h * 0.64);
  const upper = { top: 12 + strip, bottom: split - 14 };
  const lower = { top: split + 20, bottom: h - 36 };
  const x = (t) => left + (t / end) * (w - left - right);
  ctx.font = FONT;

  const finite = scene.curves.flatMap(({ name, loss }) => (name === "bound" ? [] : Array.from(loss).filter((v) => v > 0 && v < 1e12)));
  let low = Math.min(...finite);
  let high = Math.max(...finite);
  if (!finite.length) [low, high] = [0.1, 1];
  [low, high] = [low / 1.4, high * 1.3];
  const y = (v) => upper.bottom - ((Math.log(v) - Math.log(low)) / (Math.log(high) - Math.log(low))) * (upper.bottom - upper.top);
  frameOf(ctx, colours, left, w - right, upper);
  ctx.textAlign = "right";
  for (const v of logTicks(low, high)) {
    grid(ctx, colours, left, w - right, y(v));
    ctx.fillStyle = colours.muted;
    ctx.fillText(nice(v), left - 7, y(v) + 4);
  }
  title(ctx, colours, "mean loss E f", left, upper.top - 0, (upper.top + upper.bottom) / 2);
  if (scene.phases) phaseStrips(ctx, scene, x, w - right);

  const labels = [];
  ctx.save();
  clip(ctx, left, w - right, upper);
  for (const { name, time, loss } of scene.curves) {
    stroke(ctx, colours, name);
    ctx.beginPath();
    for (let i = 0; i < time.length; i++) if (loss[i] > 0 && Number.isFinite(loss[i])) ctx.lineTo(x(time[i]), y(loss[i]));
    ctx.stroke();
    const last = loss[loss.length - 1];
    if (last > 0 && Number.isFinite(last)) labels.push({ name, y: Math.min(Math.max(y(last), upper.top), upper.bottom) });
  }
  ctx.restore();
  endLabels(ctx, colours, labels, w - right + 6, upper);

  const limit = scene.limit;
  const z = (v) => (lower.top + lower.bottom) / 2 - (v / limit) * 0.5 * (lower.bottom - lower.top);
  frameOf(ctx, colours, left, w - right, lower);
  ctx.save();
  clip(ctx, left, w - right, lower);
  if (scene.band) {
    ctx.fillStyle = colours.optimizer;
    ctx.globalAlpha = 0.13;
    ctx.beginPath();
    scene.band.time.forEach((t, i) => ctx.lineTo(x(t), z(scene.band.value[i])));
    for (let i = scene.band.time.length - 1; i >= 0; i--) ctx.lineTo(x(scene.band.time[i]), z(-scene.band.value[i]));
    ctx.fill();
    ctx.globalAlpha = 1;
  }
  grid(ctx, colours, left, w - right, z(0));
  for (const { name, time, value } of scene.differences) {
    stroke(ctx, colours, name);
    ctx.beginPath();
    for (let i = 0; i < time.length; i++) if (Number.isFinite(value[i])) ctx.lineTo(x(time[i]), z(value[i]));
    ctx.stroke();
  }
  ctx.restore();
  ctx.setLineDash([]);
  ctx.textAlign = "right";
  ctx.fillStyle = colours.muted;
  for (const v of [-limit, 0, limit]) ctx.fillText(`${nice(v * 100)} %`, left - 7, z(v) + 4);
  ctx.textAlign = "left";
  ctx.fillText("difference from the optimizer", left, lower.top - 6);
  ctx.textAlign = "center";
  for (const t of ticks(0, end, w < 430 ? 4 : 6)) ctx.fillText(nice(t), x(t), h - 20);
  ctx.fillText("time t = kη", (left + w - right) / 2, h - 4);

  ctx.strokeStyle = colours.ink;
  ctx.globalAlpha = 0.55;
  ctx.lineWidth = 1;
  for (const box of [upper, lower]) {
    ctx.beginPath();
    ctx.moveTo(x(scene.now), box.top);
    ctx.lineTo(x(scene.now), box.bottom);
    ctx.stroke();
  }
  ctx.globalAlpha = 1;
  canvas.dataset.left = left;
  canvas.dataset.right = right;
}

function stroke(ctx, colours, name) {
  ctx.strokeStyle = colours[name];
  ctx.lineWidth = LOOKS[name].width;
  ctx.setLineDash(LOOKS[name].dash);
}

function clip(ctx, left, right, { top, bottom }) {
  ctx.beginPath();
  ctx.rect(left, top - 1, right - left, bottom - top + 2);
  ctx.clip();
}

function frameOf(ctx, colours, left, right, { top, bottom }) {
  ctx.setLineDash([]);
  ctx.strokeStyle = colours.muted;
  ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.moveTo(left, top);
  ctx.lineTo(left, bottom);
  ctx.lineTo(right, bottom);
  ctx.stroke();
}

function grid(ctx, colours, left, right, y) {
  ctx.setLineDash([]);
  ctx.strokeStyle = colours.line;
  ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.moveTo(left, y);
  ctx.lineTo(right, y);
  ctx.stroke();
}

function title(ctx, colours, text, left, top, middle) {
  ctx.save();
  ctx.fillStyle = colours.muted;
  ctx.textAlign = "center";
  ctx.translate(12, middle);
  ctx.rotate(-Math.PI / 2);
  ctx.fillText(text, 0, 0);
  ctx.restore();
}

function logTicks(low, high) {
  const found = [];
  const decades = Math.log10(high / low);
  const factors = decades > 2.5 ? [1] : decades > 1.2 ? [1, 3] : [1, 2, 5];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
    for (const f of factors) {
      const v = f * 10 ** p;
      if (v >= low && v <= high) found.push(Number(v.toPrecision(6)));
    }
  return found;
}

function endLabels(ctx, colours, labels, x, { top, bottom }) {
  labels.sort((a, b) => a.y - b.y);
  const gap = 14;
  for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + gap);
  for (let i = labels.length - 1; i >= 0; i--)
    labels[i].y = Math.min(labels[i].y, i === labels.length - 1 ? bottom : labels[i + 1].y - gap);
  ctx.textAlign = "left";
  for (const { name, y } of labels) {
    ctx.fillStyle = colours[name];
    ctx.fillText(LOOKS[name].label, x, y + 4);
  }
}

function phaseStrips(ctx, { phases, colours }, x, right) {
  ctx.font = "10px system-ui, sans-serif";
  phases.forEach(({ time, phase, label }, i) => {
    const top = 6 + 15 * i;
    for (let r = 0; r + 1 < time.length; ) {
      let last = r;
      while (last + 1 < time.length && phase[last] === phase[r]) last++;
      const [begin, end] = [x(time[r]), x(time[last])];
      ctx.fillStyle = colours[`phase${phase[r]}`];
      ctx.fillRect(begin, top, end - begin, 13);
      if (end - begin > 16) {
        ctx.fillStyle = "#10141a";
        ctx.textAlign = "center";
        ctx.fillText(String(phase[r]), (begin + end) / 2, top + 10);
      }
      r = last;
    }
    ctx.fillStyle = colours.muted;
    ctx.textAlign = "right";
    ctx.fillText(label, x(0) - 7, top + 10);
  });
  ctx.textAlign = "left";
  ctx.fillStyle = colours.muted;
  ctx.font = FONT;
  ctx.fillText("phase", right + 6, 17);
}
