// The page: controls, playback, and what is recomputed when a setting changes.
import { bound, caseOf, closure, hasMean, isAdaptive, phaseOf, recordedSteps, signal, stationary, whyNoClosure } from "./engine.js";
import { LOOKS, coloursOf, drawCurves, drawLandscape, nice, windowOf } from "./charts.js";
import { DEFAULTS, NOISES, OPTIMIZERS, PRESETS, atBatchRatio, changed, commandOf, fromHash, legal, pythonOf, toHash } from "./settings.js";
import { FRAMES, runParticles } from "./worker.js";
import { calculatorState, loadCalculator, startCalculator } from "./calculator.js";

const byId = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

let settings = initial();
let found = {}; // what is computed at once: case, closure, stationary law, bound, phases
let particles = null; // what the worker has sent for `particles.id`
let request = 0;
let frame = 0;
let playing = false;
let ready = false;
let shownWindow = null;
let heldWindow = null; // while the start is dragged
let colours = coloursOf(document.documentElement);
const hidden = new Set();

function initial() {
  const hash = location.hash.slice(1);
  if (hash.includes("=")) return fromHash(hash);
  const given = JSON.parse(byId("settings").textContent || "null");
  return given ? legal(changed(DEFAULTS, given)) : structuredClone(DEFAULTS);
}

// ── Controls ───────────────────────────────────────────────────────────────────────────────────────────────────────

const logarithmic = (low, high) => ({
  low,
  high,
  to: (v) => Math.log(Math.max(v, low) / low) / Math.log(high / low),
  from: (u) => rounded(low * (high / low) ** u),
});
const linear = (low, high, step) => ({
  low,
  high,
  to: (v) => (v - low) / (high - low),
  from: (u) => Number((Math.round((low + u * (high - low)) / step) * step).toFixed(6)),
});
const memory = {
  low: 0,
  high: 0.9999,
  to: (v) => -Math.log10(1 - v) / 4,
  from: (u) => Number((1 - 10 ** (-4 * u)).toFixed(u > 0.7 ? 4 : 3)),
};
const zeroOrLog = (low, high) => ({
  low: 0,
  high,
  to: (v) => (v <= 0 ? 0 : 0.04 + 0.96 * (Math.log(Math.max(v, low) / low) / Math.log(high / low))),
  from: (u) => (u < 0.04 ? 0 : rounded(low * (high / low) ** ((u - 0.04) / 0.96))),
});
const steps = (values) => ({
  low: values[0],
  high: values.at(-1),
  to: (v) => Math.max(values.findLastIndex((a) => a <= v * (1 + 1e-9)), 0) / (values.length - 1),
  from: (u) => values[Math.round(u * (values.length - 1))],
  count: values.length,
});
const rounded = (v) => Number(v.toPrecision(v < 1 ? 2 : 3));

const o = (key) => [() => settings.optimizer[key], (v) => (settings.optimizer[key] = v)];
const own = (key) => [() => settings[key], (v) => (settings[key] = v)];
const at = (key, i) => [() => settings[key][i], (v) => (settings[key][i] = v)];
const sigma = (i) => [() => settings.noise.scale[i], (v) => (settings.noise.scale[i] = v)];
const df = [() => settings.noise.df, (v) => (settings.noise.df = v)];
const plane = () => settings.dim === 2;
const known = () => caseOf(settings);

const CONTROLS = [
  ["optimizer", "lr", "learning rate η", logarithmic(1e-4, 0.5), o("lr")],
  ["optimizer", "b1", "β₁, decay of the first moment", memory, o("b1"), () => hasMean(known())],
  ["optimizer", "b2", "β₂, decay of the second moment", memory, o("b2"), () => isAdaptive(known()) || known().name === "lion"],
  ["optimizer", "wd", "weight decay θ (times η)", zeroOrLog(0.01, 10), o("weight_decay")],
  ["optimizer", "eps", "ε, added to √v", zeroOrLog(1e-8, 1), o("eps"), () => isAdaptive(known())],
  ["noise", "s1", "noise scale σ₁", logarithmic(0.01, 100), sigma(0)],
  ["noise", "s2", "noise scale σ₂", logarithmic(0.01, 100), sigma(1), plane],
  ["noise", "df", "degrees of freedom ν", steps([1, 2, 3, 4, 5, 6, 8, 10, 15, 30]), df, () => settings.noise.name === "student-t"],
  ["loss", "h1", "curvature λ₁", logarithmic(0.05, 50), at("curvature", 0)],
  ["loss", "h2", "curvature λ₂", logarithmic(0.05, 50), at("curvature", 1), plane],
  ["loss", "angle", "angle of the axes, degrees", linear(-90, 90, 1), own("angle"), plane],
  ["loss", "x1", "start x₁", linear(-5, 5, 0.05), at("start", 0)],
  ["loss", "x2", "start x₂", linear(-5, 5, 0.05), at("start", 1), plane],
  ["run", "steps", "optimizer steps", logarithmic(50, 5000), [() => settings.steps, (v) => (settings.steps = Math.round(v))]],
  ["run", "substeps", "substeps of the SDEs per step", steps([1, 2, 4, 8, 16]), own("substeps")],
  ["run", "ratio", "batch ratio δ = new B / old B", steps([0.25, 0.5, 1, 2, 4, 8, 16]), own("ratio")],
];

function buildControls() {
  for (const [group, id, label, scale, [get, set], when] of CONTROLS) {
    const row = document.createElement("div");
    row.className = "control";
    row.innerHTML =
      `<label for="c-${id}">${label}</label><input id="n-${id}" type="number" step="any" inputmode="decimal" ` +
      `aria-label="${label}, as a number"><input id="c-${id}" type="range" min="0" max="1" ` +
      `step="${scale.count ? 1 / (scale.count - 1) : 0.002}">`;
    byId(`group-${group}`).append(row);
    const [, number, range] = row.children;
    range.addEventListener("input", () => {
      set(scale.from(Number(range.value)));
      update();
    });
    number.addEventListener("change", () => {
      if (number.value !== "" && Number.isFinite(Number(number.value))) set(Number(number.value));
      settings = legal(settings);
      update();
    });
    row.show = () => {
      row.hidden = Boolean(when && !when());
      if (document.activeElement !== number) number.value = get();
      if (document.activeElement !== range || Math.abs(Number(range.value) - scale.to(get())) > 0.02) range.value = scale.to(get());
      range.setAttribute("aria-valuetext", String(get()));
    };
    rows.push(row);
  }
  fill("optimizer", OPTIMIZERS, o("name"), (name) => {
    settings.optimizer.v0 = name === "rmspropw" ? "second-moment" : "zero";
  });
  fill("noise", NOISES, [() => settings.noise.name, (v) => (settings.noise.name = v)]);
  fill("dim", { 1: "one coordinate", 2: "two coordinates" }, [() => String(settings.dim), (v) => (settings.dim = Number(v))]);
  fill("v0", { zero: "0", "second-moment": "E g² at the start" }, o("v0"), null, () => isAdaptive(known()));
  const nesterov = byId("nesterov");
  nesterov.addEventListener("change", () => {
    settings.optimizer.nesterov = nesterov.checked;
    update();
  });
  rows.push({ show: () => ((nesterov.checked = settings.optimizer.nesterov), (nesterov.parentElement.hidden = settings.optimizer.name !== "momentum")) });
}
const rows = [];

function fill(id, options, [get, set], also, when) {
  const select = byId(`s-${id}`);
  select.innerHTML = Object.entries(options)
    .map(([value, text]) => `<option value="${value}">${text}</option>`)
    .join("");
  select.addEventListener("change", () => {
    set(select.value);
    also?.(select.value);
    update();
  });
  rows.push({
    show: () => {
      select.value = get();
      if (when) select.parentElement.hidden = !when();
    },
  });
}

function buildPresets() {
  for (const preset of PRESETS) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = preset.title;
    button.addEventListener("click", () => {
      const from = structuredClone(DEFAULTS);
      settings = legal(changed(from, preset.changes));
      byId("preset-text").textContent = preset.text;
      press(button);
      update();
      rewind();
    });
    byId("presets").append(button);
  }
  if (toHash(settings)) return;
  byId("preset-text").textContent = PRESETS[0].text;
  press(byId("presets").firstChild);
}

function press(button) {
  for (const other of byId("presets").children) other.setAttribute("aria-pressed", String(other === button));
}

// ── What follows from the settings ─────────────────────────────────────────────────────────────────────────────────

let waiting = 0;
let refining = 0;

/** Recompute and redraw after a change of a setting. */
function update() {
  for (const row of rows) row.show();
  settings = legal(settings);
  if (waiting) return;
  waiting = requestAnimationFrame(() => {
    waiting = 0;
    refresh(true);
  });
}

/** The closure and everything drawn from it; the particles follow from the worker. */
function refresh(rough) {
  const c = caseOf(settings);
  const records = recordedSteps(settings.steps, FRAMES);
  const reason = whyNoClosure(c);
  found = { c, records, reason, curve: null, rest: null };
  if (!reason) {
    found.curve = closure(c, records, rough);
    if (!found.curve.loss.every(Number.isFinite)) found.reason = "the closure diverges at these settings: the steps are too long";
    found.rest = stationary(c);
  }
  found.bound = bound(c, records);
  found.other = settings.ratio === 1 ? null : atRatio();
  if (c.name === "signsgd" && found.curve)
    found.phases = c.start.map((_, i) => ({
      label: c.d === 1 ? "" : `x${"₁₂"[i]}`,
      time: records.map((k) => k * c.lr),
      phase: records.map((_, r) => phaseOf(signal(c, Array.from(found.curve.x.subarray(r * c.d, (r + 1) * c.d)))[i])),
    }));
  frame = Math.min(frame, records.length - 1);
  byId("scrub").max = records.length - 1;
  ask();
  draw();
  notes();
  clearTimeout(refining);
  refining = setTimeout(() => {
    if (rough && !reason) {
      found.curve = closure(c, records);
      draw();
    }
    describe();
    remember();
  }, 180);
}

function atRatio() {
  const other = atBatchRatio(settings);
  if (other.error) return other;
  const c = caseOf(other.settings);
  if (whyNoClosure(c)) return { error: "without a variance there is no closure to compare" };
  const records = recordedSteps(other.settings.steps, FRAMES);
  return { ...other, time: records.map((k) => k * settings.ratio * settings.optimizer.lr), loss: closure(c, records, true).loss };
}

function remember() {
  const calculating = byId("landscape").hidden;
  const text = [toHash(settings), calculating ? `tab=calculator&${calculatorState()}` : ""].filter(Boolean).join("&");
  try {
    history.replaceState(null, "", `#${text || "="}`);
  } catch {
    location.hash = text;
  }
}

// ── Particles ──────────────────────────────────────────────────────────────────────────────────────────────────────

let worker = null;
try {
  const source = ["engine", "worker"].map((id) => byId(id).textContent).join("\n");
  worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => receive(data);
  worker.onerror = () => (worker = null);
} catch {
  worker = null;
}

function ask() {
  request += 1;
  const message = { id: request, settings: structuredClone(settings), seed: 1 };
  if (worker) worker.postMessage(message);
  else runParticles(message, receive, (id) => id !== request);
}

function receive(message) {
  if (message.id !== request) return;
  const positions = message.positions ?? particles?.positions;
  const arrived = particles?.id !== message.id;
  particles = { ...message, positions };
  if (arrived && !playing && frame === 0 && !heldWindow) rewind();
  draw();
}

// ── Drawing ────────────────────────────────────────────────────────────────────────────────────────────────────────

const shows = (name) => !hidden.has(name);

function draw() {
  const { c, records, curve, rest } = found;
  const fresh = particles?.id === request;
  const fits = particles && particles.steps.length === records.length && Object.values(particles.positions)[0].length % (records.length * c.d) === 0;
  drawLandscape(byId("map"), {
    c,
    colours,
    curve: found.reason ? null : curve,
    rest,
    frame,
    shown: shows,
    particles: fits && (fresh || sameShape()) ? particles.positions : null,
    records: records.length,
    stale: !fresh,
    window: (shownWindow = heldWindow ?? windowOf(settings.view, c, found.reason ? null : curve, rest)),
  });
  drawCurves(byId("curves"), curveScene(fresh));
  table(fresh);
  byId("scrub").value = frame;
  byId("scrub").setAttribute("aria-valuetext", `step ${records[frame]}`);
  byId("clock").textContent = `step ${records[frame]} · t = ${nice(records[frame] * c.lr)}`;
}

const sameShape = () => particles?.models.length > 0 && Object.values(particles.positions)[0].length === found.records.length * found.c.d * 250;

function curveScene(fresh) {
  const { c, records, curve } = found;
  const time = records.map((k) => k * c.lr);
  const curves = [];
  const differences = [];
  let band = null;
  let widest = 0.005;
  if (found.bound.loss || Number.isFinite(found.bound.asymptote))
    curves.push({ name: "bound", time, loss: found.bound.loss ?? time.map(() => found.bound.asymptote) });
  if (fresh) {
    const reference = particles.models.find((m) => m.name === "optimizer");
    const noise = Array.from(reference.error, (e, i) => (2.5758 * e) / reference.mean[i]);
    band = { time, value: noise };
    widest = Math.max(widest, 2 * median(noise));
    for (const model of particles.models.slice().reverse()) {
      if (!shows(model.name)) continue;
      curves.push({ name: model.name, time, loss: model.mean });
      if (model.name !== "optimizer") {
        const value = Array.from(model.mean, (v, i) => v / reference.mean[i] - 1);
        differences.push({ name: model.name, time, value });
        widest = Math.max(widest, quantile(value.map(Math.abs), 0.95));
      }
    }
    if (curve && !found.reason && shows("prediction"))
      differences.push({ name: "prediction", time, value: Array.from(curve.loss, (v, i) => v / reference.mean[i] - 1) });
  }
  if (curve && !found.reason && shows("prediction")) curves.push({ name: "prediction", time, loss: curve.loss });
  if (found.other?.loss && shows("rescaled")) {
    const { time: t, loss } = found.other;
    curves.push({ name: "rescaled", time: t, loss });
    if (curve && fresh) {
      const value = t.map((s, i) => loss[i] / interpolated(time, curve.loss, s) - 1);
      differences.push({ name: "rescaled", time: t, value });
      widest = Math.max(widest, quantile(value.map(Math.abs), 0.95));
    }
  }
  const limit = [0.02, 0.05, 0.1, 0.2, 0.5, 1].find((v) => v >= Math.min(widest * 1.15, 1)) ?? 1;
  return {
    colours,
    curves: curves.filter(({ name }) => shows(name)),
    differences,
    band,
    limit,
    phases: found.phases,
    end: time.at(-1),
    now: time[frame],
  };
}

const quantile = (values, q) => {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  return sorted[Math.floor(q * (sorted.length - 1))] ?? 0;
};
const median = (values) => quantile(values.slice(), 0.5);

function interpolated(time, values, t) {
  let i = time.findIndex((v) => v >= t);
  if (i <= 0) return values[i === 0 ? 0 : values.length - 1];
  const share = (t - time[i - 1]) / (time[i] - time[i - 1]);
  return values[i - 1] + share * (values[i] - values[i - 1]);
}

/** Relative L2 error of a mean-loss curve against the optimizer's, and what noise alone would show. */
function errorOf(model, reference) {
  let [top, bottom, noise] = [0, 0, 0];
  for (let i = 0; i < reference.mean.length; i++) {
    top += (model.mean[i] - reference.mean[i]) ** 2;
    bottom += reference.mean[i] ** 2;
    noise += (model.error?.[i] ?? 0) ** 2 + reference.error[i] ** 2;
  }
  return { error: Math.sqrt(Math.max(top - noise, 0) / bottom), floor: Math.sqrt(noise / bottom) };
}

function table(fresh) {
  const { c, records, curve } = found;
  const reference = fresh ? particles.models.find((m) => m.name === "optimizer") : null;
  const lines = [];
  const line = (name, loss, error) => lines.push([name, loss, error]);
  for (const name of ["optimizer", "sde", "malladi2022"]) {
    const model = fresh ? particles.models.find((m) => m.name === name) : null;
    if (name !== "optimizer" && fresh && !model) continue;
    if (!fresh && name === "malladi2022" && !isAdaptive(c)) continue;
    line(name, model?.mean[frame], name !== "optimizer" && model ? errorOf(model, reference) : null);
  }
  if (curve && !found.reason) line("prediction", curve.loss[frame], reference ? errorOf({ mean: curve.loss }, reference) : null);
  if (found.bound.loss || Number.isFinite(found.bound.asymptote)) line("bound", found.bound.loss?.[frame] ?? found.bound.asymptote, null);
  if (found.other?.loss) line("rescaled", interpolated(found.other.time, found.other.loss, records[frame] * c.lr), null);
  const body = byId("models");
  const key = lines.map(([name]) => name).join();
  if (body.dataset.key !== key) {
    body.dataset.key = key;
    body.innerHTML = lines
      .map(
        ([name]) =>
          `<tr data-name="${name}"><th scope="row"><label><input type="checkbox"${hidden.has(name) ? "" : " checked"}>` +
          `<svg width="34" height="8" aria-hidden="true"><line x1="1" y1="4" x2="33" y2="4" stroke="var(--${name})" stroke-width="${LOOKS[name].width}" ` +
          `stroke-dasharray="${LOOKS[name].dash.join(" ")}"/></svg>${LOOKS[name].label}</label></th><td></td><td></td></tr>`,
      )
      .join("");
  }
  lines.forEach(([, loss, error], i) => {
    const [, value, difference] = body.children[i].children;
    value.textContent = loss === undefined ? "…" : nice(loss);
    difference.textContent = !error || !Number.isFinite(error.floor) ? "" : error.error > 2 * error.floor ? `${nice(Number((100 * error.error).toPrecision(2)))} %` : `< ${nice(Number((200 * error.floor).toPrecision(1)))} %`;
  });
}

function notes() {
  const { c, rest, reason, bound: limit, other } = found;
  const said = [];
  if (reason) said.push(`Closure: ${reason}.`);
  if (rest) {
    const sd = c.start.map((_, i) => nice(Math.sqrt(rest.covariance[i * c.d + i])));
    said.push(`At rest: mean loss ${nice(rest.loss)}, standard deviation ${sd.length > 1 ? `of x₁ ${sd[0]}, of x₂ ${sd[1]}` : sd[0]}.`);
  } else if (!reason) said.push("No stationary law: the steps are unstable at this learning rate.");
  if (!limit.loss && limit.reason && !(Number.isFinite(limit.asymptote))) said.push(`No bound: ${limit.reason}.`);
  else if (limit.reason) said.push(`Bound: ${limit.reason}.`);
  if (c.name !== "signsgd" && !Number.isFinite(c.law.variance)) said.push("Without a variance of the noise this optimizer has no SDE.");
  if (other?.error) said.push(`Batch ratio: ${other.error}.`);
  else if (other) {
    const n = other.settings.optimizer;
    said.push(`At δ = ${settings.ratio} (rule ${other.rule}): lr ${nice(n.lr)}${hasMean(c) ? `, β₁ ${nice(n.b1)}` : ""}${isAdaptive(c) || c.name === "lion" ? `, β₂ ${nice(n.b2)}` : ""}${n.weight_decay ? `, θ ${nice(n.weight_decay)}` : ""}, ${other.settings.steps} steps.`);
  }
  if (settings.substeps === 1 && c.law.normal && ["sgd", "momentum"].includes(c.name))
    said.push("At one substep and normal noise the scheme of this SDE is the optimizer itself: choose more substeps to see the equation.");
  byId("notes").innerHTML = said.map((text) => `<li>${text}</li>`).join("");
}

/** The pictures in words, for readers of the screen. */
function describe() {
  const { c, rest, curve } = found;
  const name = OPTIMIZERS[c.name];
  const where = curve ? ` The predicted mean loss falls from ${nice(curve.loss[0])} to ${nice(curve.loss.at(-1))} in ${settings.steps} steps.` : "";
  byId("map").setAttribute(
    "aria-label",
    `Landscape: particles of ${name} and of its SDEs on a quadratic loss, starting at ${c.start.map(nice).join(", ")}. ` +
      (rest ? `The dashed ellipse is two standard deviations of the stationary law.` : ""),
  );
  byId("curves").setAttribute("aria-label", `Mean loss of ${name}, its SDEs, the closure and the bound over time, with differences from the optimizer below.${where}`);
}

// ── Playback ───────────────────────────────────────────────────────────────────────────────────────────────────────

let clock = 0;

function play(on) {
  playing = on;
  byId("play").textContent = on ? "Pause" : "Play";
  byId("play").setAttribute("aria-pressed", String(on));
  clock = performance.now();
  if (on) {
    if (frame >= found.records.length - 1) frame = 0;
    requestAnimationFrame(tick);
  }
}

function tick(now) {
  if (!playing) return;
  const last = found.records.length - 1;
  if (now - clock >= 33) {
    frame = Math.min(frame + Math.max(1, Math.round(last / 160)), last);
    clock = now;
    draw();
    if (frame >= last) return play(false);
  }
  requestAnimationFrame(tick);
}

function rewind() {
  if (still.matches) {
    frame = found.records ? found.records.length - 1 : 0;
    if (found.records) draw();
    return;
  }
  frame = 0;
  play(true);
}

function scrubTo(value) {
  play(false);
  frame = Math.max(0, Math.min(value, found.records.length - 1));
  draw();
}

function listen() {
  byId("play").addEventListener("click", () => play(!playing));
  byId("scrub").addEventListener("input", (event) => scrubTo(Number(event.target.value)));
  byId("view").addEventListener("click", () => {
    settings.view = settings.view === "rest" ? "whole" : "rest";
    showView();
    update();
  });
  byId("models").addEventListener("change", (event) => {
    const { name } = event.target.closest("tr").dataset;
    if (event.target.checked) hidden.delete(name);
    else hidden.add(name);
    draw();
  });
  const curves = byId("curves");
  const scrub = (event) => {
    const box = curves.getBoundingClientRect();
    const [left, right] = [Number(curves.dataset.left), Number(curves.dataset.right)];
    const share = (event.clientX - box.left - left) / (box.width - left - right);
    scrubTo(Math.round(share * (found.records.length - 1)));
  };
  curves.addEventListener("pointerdown", scrub);
  curves.addEventListener("pointermove", (event) => event.buttons && scrub(event));
  const map = byId("map");
  const drag = (event) => {
    const box = map.getBoundingClientRect();
    const { centre, half } = heldWindow;
    const scale = (found.c.d === 1 ? box.width : Math.min(box.width, box.height)) / 2 / half;
    const x = centre[0] + (event.clientX - box.left - box.width / 2) / scale;
    const y = found.c.d === 1 ? settings.start[1] : centre[1] + (box.top + box.height / 2 - event.clientY) / scale;
    settings.start = [x, y].map((v) => Number(v.toFixed(2)));
    update();
  };
  map.addEventListener("pointerdown", (event) => {
    if (settings.view === "rest") return;
    heldWindow = shownWindow;
    map.setPointerCapture(event.pointerId);
    drag(event);
  });
  map.addEventListener("pointermove", (event) => heldWindow && drag(event));
  for (const name of ["pointerup", "pointercancel"])
    map.addEventListener(name, () => {
      if (!heldWindow) return;
      heldWindow = null;
      rewind();
    });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, button, textarea, summary, [role=tab]") || byId("landscape").hidden) return;
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 };
    if (event.key === " ") play(!playing);
    else if (event.key in moves) scrubTo(frame + moves[event.key]);
    else return;
    event.preventDefault();
  });
  byId("copy-python").addEventListener("click", (e) => copy(e.target, pythonOf(settings)));
  byId("copy-command").addEventListener("click", (e) => copy(e.target, commandOf(settings)));
  byId("copy-link").addEventListener("click", (e) => copy(e.target, (remember(), location.href)));
  byId("reset").addEventListener("click", () => {
    settings = structuredClone(DEFAULTS);
    hidden.clear();
    byId("models").dataset.key = "";
    showView();
    update();
    rewind();
  });
  byId("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    recolour();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
  window.addEventListener("hashchange", () => {
    if (!location.hash.includes("=")) return;
    settings = fromHash(location.hash.slice(1));
    showView();
    update();
  });
  const resized = new ResizeObserver(() => found.c && draw());
  for (const id of ["map", "curves"]) resized.observe(byId(id));
  tabs();
}

function showView() {
  byId("view").setAttribute("aria-pressed", String(settings.view === "rest"));
}

function theme() {
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  recolour();
}

function recolour() {
  colours = coloursOf(document.documentElement);
  if (found.c) draw();
}

/** Copy a text, and say so on the button. */
export async function copy(button, text) {
  const label = (button.dataset.label ??= button.textContent);
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    button.textContent = document.execCommand("copy") ? "Copied" : "Cannot copy";
    area.remove();
  }
  setTimeout(() => (button.textContent = label), 1500);
}

function tabs() {
  const all = Array.from(document.querySelectorAll("[role=tab]"));
  const choose = (tab) => {
    for (const other of all) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      byId(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    if (tab.id === "tab-landscape") draw();
    else play(false);
    if (ready) remember();
  };
  all.forEach((tab, i) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      const next = all[(i + move + all.length) % all.length];
      next.focus();
      choose(next);
    });
  });
  if (new URLSearchParams(location.hash.slice(1)).has("tab")) choose(all[1]);
}

theme();
buildControls();
buildPresets();
startCalculator(copy, () => ready && remember());
loadCalculator(new URLSearchParams(location.hash.slice(1)));
for (const row of rows) row.show();
showView();
refresh(false);
describe();
listen();
if (still.matches) frame = found.records.length - 1;
ready = true;
window.sdelens = { refresh, settings: () => settings, particles: () => particles, update };
