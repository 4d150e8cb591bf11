// The batch calculator: a form, the new numbers with their reasons, a verdict, and code.
import { DEFAULT_RULE, RULES, commandOfRun, general, optaxCode, rescale, torchCode, verdict } from "./scaling.js";

const byId = (id) => document.getElementById(id);

const FAMILIES = {
  adamw: { label: "AdamW", numbers: { lr: 3e-4, b1: 0.9, b2: 0.95, eps: 1e-8, weight_decay: 0.1 } },
  adam: { label: "Adam (L2 decay)", numbers: { lr: 1e-3, b1: 0.9, b2: 0.999, eps: 1e-8, weight_decay: 0 } },
  rmspropw: { label: "RMSpropW", numbers: { lr: 1e-3, b2: 0.99, eps: 1e-8, weight_decay: 0 } },
  sgd: { label: "SGD, with momentum as in PyTorch", numbers: { lr: 0.1, momentum: 0.9, weight_decay: 5e-4 } },
  momentum: { label: "Momentum, damped by 1 − β₁", numbers: { lr: 0.1, b1: 0.9, weight_decay: 0 } },
  signsgd: { label: "SignSGD", numbers: { lr: 1e-4, weight_decay: 0 } },
  signum: { label: "Signum", numbers: { lr: 1e-4, b1: 0.9, weight_decay: 0 } },
  lion: { label: "Lion", numbers: { lr: 1e-4, b1: 0.9, b2: 0.99, weight_decay: 1 } },
};
const LABELS = {
  lr: "learning rate",
  b1: "β₁",
  b2: "β₂",
  momentum: "momentum μ",
  eps: "ε",
  weight_decay: "weight decay θ",
};
const NAMES = { ...LABELS, steps: "steps", warmup: "warm-up steps", lr: "learning rate η" };
const MOMENTA = {
  "": "as the rule says",
  samples: "1 − β times δ",
  "second-moment": "β₁ fixed, β₂ to the power δ",
  "half-life": "β to the power δ",
  time: "1 − β times the factor of lr",
  fixed: "fixed",
};

let changed = () => {};

/** Fill the form, and recompute at every change, after which `remember` is called. */
export function startCalculator(copy, remember) {
  changed = remember;
  byId("k-optimizer").innerHTML = Object.entries(FAMILIES).map(([v, { label }]) => `<option value="${v}">${label}</option>`).join("");
  byId("k-momentum").innerHTML = Object.entries(MOMENTA).map(([v, label]) => `<option value="${v}">${label}</option>`).join("");
  byId("k-optimizer").addEventListener("change", () => fillNumbers(FAMILIES[byId("k-optimizer").value].numbers));
  byId("calculator-form").addEventListener("input", show);
  byId("calculator-form").addEventListener("submit", (event) => event.preventDefault());
  for (const form of ["torch", "optax", "shell"]) byId(`copy-${form}`).addEventListener("click", (e) => copy(e.target, byId(`code-${form}`).textContent));
  fillNumbers(FAMILIES.adamw.numbers);
}

const inputs = () => Array.from(byId("calculator-form").querySelectorAll("input, select"));

/** The values of the form, as text for the address. */
export const calculatorState = () =>
  inputs()
    .filter(({ value }) => value !== "")
    .map(({ id, value }) => `${id}=${encodeURIComponent(value)}`)
    .join("&");

/** Fill the form from the parameters of an address. */
export function loadCalculator(parameters) {
  const name = parameters.get("k-optimizer");
  if (name in FAMILIES) {
    byId("k-optimizer").value = name;
    fillNumbers(FAMILIES[name].numbers);
  }
  for (const input of inputs()) {
    const value = parameters.get(input.id);
    if (value === null || input.id === "k-optimizer") continue;
    if (input.tagName !== "SELECT" || Array.from(input.options, (o) => o.value).includes(value)) input.value = value;
  }
  show();
}

function fillNumbers(numbers) {
  byId("k-numbers").innerHTML = Object.entries(numbers)
    .map(([key, value]) => `<label>${LABELS[key]}<input id="k-${key}" type="text" inputmode="decimal" value="${value}"></label>`)
    .join("");
  const name = byId("k-optimizer").value;
  const family = { adam: "adamw", sgd: "sgd" }[name] ?? name;
  const usable = Object.keys(RULES).filter((rule) => !RULES[rule].families || RULES[rule].families.includes(family));
  byId("k-rule").innerHTML = usable
    .map((rule) => `<option value="${rule}"${rule === DEFAULT_RULE[family] ? " selected" : ""}>${rule}${rule === DEFAULT_RULE[family] ? " (keeps the SDE)" : ""}</option>`)
    .join("");
  show();
}

const RANGES = { b1: [0, 1], b2: [0, 1], momentum: [0, 1] };

/** The numbers of the form; those that are not valid are marked, and then there is no run. */
function read() {
  const name = byId("k-optimizer").value;
  const optimizer = { optimizer: name };
  let valid = true;
  const number = (id, check) => {
    const input = byId(id);
    const value = input.value.trim() === "" ? NaN : Number(input.value);
    const good = Number.isFinite(value) && check(value);
    input.setAttribute("aria-invalid", String(!good));
    valid &&= good;
    return value;
  };
  for (const key of Object.keys(FAMILIES[name].numbers)) {
    const [low, high] = RANGES[key] ?? [0, Infinity];
    optimizer[key] = number(`k-${key}`, (v) => (key === "lr" ? v > 0 : v >= low && v < high));
  }
  const whole = (v) => Number.isInteger(v) && v >= 0;
  const run = {
    optimizer,
    batch: number("k-batch", (v) => v > 0),
    to: number("k-to", (v) => v > 0),
    steps: number("k-steps", (v) => whole(v) && v > 0),
    warmup: number("k-warmup", whole),
    rule: byId("k-rule").value,
  };
  if (byId("k-momentum").value) run.momentum = byId("k-momentum").value;
  const snr = byId("k-snr").value.trim();
  const measured = snr === "" ? null : number("k-snr", (v) => v >= 0);
  if (snr === "") byId("k-snr").setAttribute("aria-invalid", "false");
  return { run: valid ? run : null, snr: measured };
}

function show() {
  changed();
  const { run, snr } = read();
  const rows = byId("k-rows");
  const said = byId("k-verdict");
  const say = (level, text) => {
    said.dataset.level = level;
    said.textContent = text;
  };
  const blank = () => {
    rows.innerHTML = "";
    for (const form of ["torch", "optax", "shell"]) byId(`code-${form}`).textContent = "";
  };
  if (!run) {
    blank();
    return say("bad", "A number that is marked is missing or out of its range.");
  }
  const measured = RULES[run.rule].regime === "measured";
  const found = rescale(measured ? { ...run, snr } : run);
  if (found.error) {
    blank();
    for (const key of found.bad ?? []) byId(`k-${key}`)?.setAttribute("aria-invalid", "true");
    return say("bad", found.error);
  }
  const judged = verdict(found, snr ?? NaN);
  say(judged.level, judged.text);
  rows.innerHTML = found.rows
    .map(
      ({ name, before, after, factor, why, of }) =>
        `<tr><th scope="row">${NAMES[name] ?? name}</th><td>${general(before, 6)}</td><td class="new">${general(after, 6)}</td>` +
        `<td class="factor">${of.startsWith("1") ? "1 − β: " : ""}× ${general(factor, 4)}</td><td class="why">${why}</td></tr>`,
    )
    .join("");
  rows.parentElement.classList.toggle("doubted", judged.level === "bad");
  byId("code-torch").textContent = torchCode(found) ?? "# torch.optim has no such optimizer; see the code for optax.";
  byId("code-optax").textContent = optaxCode(found);
  byId("code-shell").textContent = commandOfRun(run, snr);
}
