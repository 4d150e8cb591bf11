"""The cases at which the explorer's numbers are compared with the library's; run as a script, it writes the latter.

`python -m tests.explorer_cases` computes every case in double precision and writes `tests/explorer_golden.json`.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "explorer_golden.json"
STEPS, EVERY = 240, 30

_OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "sgd", "lr": 0.05, "weight_decay": 0.1},
    {"name": "signsgd", "lr": 0.02},
    {"name": "rmspropw", "lr": 0.01, "b2": 0.99, "weight_decay": 0.2},
    {"name": "adamw", "lr": 0.02, "b1": 0.9, "b2": 0.99, "weight_decay": 0.1},
    {"name": "momentum", "lr": 0.05, "b1": 0.9, "weight_decay": 0.05},
    {"name": "signum", "lr": 0.01, "b1": 0.8, "weight_decay": 0.1},
    {"name": "lion", "lr": 0.01, "b1": 0.9, "b2": 0.95, "weight_decay": 0.1},
]
_MORE: list[dict[str, Any]] = [
    {"name": "rmspropw", "lr": 0.02, "b2": 0.9, "weight_decay": 0.0, "v0": "zero"},
    {"name": "adamw", "lr": 0.05, "b1": 0.8, "b2": 0.9, "weight_decay": 0.3, "eps": 0.01},
    {"name": "adamw", "lr": 0.01, "b1": 0.9, "b2": 0.95, "v0": "second-moment"},
    {"name": "momentum", "lr": 0.1, "b1": 0.7, "nesterov": True},
    {"name": "signsgd", "lr": 0.05, "weight_decay": 0.4},
]
_NOISES: list[dict[str, Any]] = [
    {"name": "gaussian", "scale": [1.0, 0.5]},
    {"name": "laplace", "scale": [0.6, 0.4]},
    {"name": "student-t", "scale": [0.7, 0.5], "df": 5.0},
]
_LANDSCAPES: list[dict[str, Any]] = [
    {"dim": 2, "curvature": [1.0, 4.0], "angle": 0.0, "start": [2.0, 1.5]},
    {"dim": 2, "curvature": [0.5, 3.0], "angle": 30.0, "start": [-1.5, 2.0]},
]
_ONE = {"dim": 1, "curvature": [2.0], "angle": 0.0, "start": [1.5]}
_DEFAULTS = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "v0": None, "nesterov": False}
_START_OF_V = {"adamw": "zero", "rmspropw": "second-moment"}


def _optimizer(given: dict[str, Any]) -> dict[str, Any]:
    full = {**_DEFAULTS, **given}
    return {**full, "v0": full["v0"] or _START_OF_V.get(full["name"], "zero")}


def settings() -> list[dict[str, Any]]:
    """The settings of every case."""
    found = []
    for landscape, noise, optimizer in itertools.product(_LANDSCAPES, _NOISES, _OPTIMIZERS):
        found.append({**landscape, "noise": noise, "optimizer": _optimizer(optimizer), "steps": STEPS})
    for landscape, optimizer in itertools.product([_LANDSCAPES[1], _ONE], _MORE):
        found.append({**landscape, "noise": _NOISES[0], "optimizer": _optimizer(optimizer), "steps": STEPS})
    found.append(
        {
            **_LANDSCAPES[1],
            "noise": {"name": "student-t", "scale": [0.7, 0.5], "df": 1.0},
            "optimizer": _optimizer({"name": "signsgd", "lr": 0.02}),
            "steps": STEPS,
        }
    )
    found.append(
        {
            **_LANDSCAPES[0],
            "noise": {"name": "student-t", "scale": [0.7, 0.5], "df": 2.5},
            "optimizer": _optimizer({"name": "adamw", "lr": 0.01, "b2": 0.9}),
            "steps": STEPS,
        }
    )
    return found


def subject(case: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Problem, noise and optimizer of a case."""
    import sdelens as sl

    angle = math.radians(case["angle"])
    axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    curvature: Any = case["curvature"]
    if case["angle"]:
        curvature = axes @ np.diag(curvature) @ axes.T
        curvature = 0.5 * (curvature + curvature.T)
    problem = sl.Quadratic(curvature, case["start"])
    noise = case["noise"]
    scale = noise["scale"][: case["dim"]]
    law = {
        "gaussian": lambda: sl.GaussianNoise(scale),
        "laplace": lambda: sl.LaplaceNoise(scale),
        "student-t": lambda: sl.StudentTNoise(scale, noise["df"]),
    }[noise["name"]]()
    kinds = {
        "sgd": (sl.SGD, ()),
        "signsgd": (sl.SignSGD, ()),
        "rmspropw": (sl.RMSpropW, ("b2", "eps", "v0")),
        "adamw": (sl.AdamW, ("b1", "b2", "eps", "v0")),
        "momentum": (sl.Momentum, ("b1", "nesterov")),
        "signum": (sl.Signum, ("b1",)),
        "lion": (sl.Lion, ("b1", "b2")),
    }
    kind, names = kinds[case["optimizer"]["name"]]
    given = {name: case["optimizer"][name] for name in ("lr", "weight_decay", *names)}
    return problem, law, kind(**given)


def expected(case: dict[str, Any]) -> dict[str, Any]:
    """The library's numbers for one case."""
    import sdelens as sl

    parts = subject(case)
    curve = sl.theory.predict(*parts, steps=case["steps"], record_every=EVERY).dataset
    found: dict[str, Any] = {
        "loss": curve.loss_mean.values[0].tolist(),
        "x": curve.x_mean.values[0].tolist(),
        "variance": curve.x_var.values[0].tolist(),
    }
    try:
        rest = sl.theory.stationary(*parts)
        found["stationary"] = {"covariance": rest.covariance.ravel().tolist(), "loss": rest.loss}
    except ValueError:
        found["stationary"] = None
    phases = sl.theory.phases(parts[0], parts[1], along=np.multiply.outer([1.0, 0.5, 0.2, 0.05], case["start"]))
    found["signal"], found["phase"] = phases.signal.tolist(), phases.phase.tolist()
    if case["optimizer"]["name"] in ("sgd", "signsgd", "rmspropw", "adamw"):
        times = np.arange(0, case["steps"] + 1, EVERY) * case["optimizer"]["lr"]
        bound = sl.theory.loss_bound(*parts, times)
        finite = np.isfinite(bound.loss).all()
        asymptote = bound.asymptote if math.isfinite(bound.asymptote) else None
        found["bound"] = {"loss": bound.loss.tolist() if finite else None, "asymptote": asymptote}
    return found


# ── Single paths ────────────────────────────────────────────────────────────────────────────────────────────────────

PATH_STEPS = 3


def paths() -> list[dict[str, Any]]:
    """Settings, models and substeps of single paths that are driven by given normal numbers."""
    found = []
    given = [*_OPTIMIZERS, *_MORE[1:4]]
    for noise, optimizer in itertools.product(_NOISES, given):
        case = {**_LANDSCAPES[1], "noise": noise, "optimizer": _optimizer(optimizer), "steps": PATH_STEPS}
        models = [("sde", 1), ("sde", 4)]
        models += [("malladi2022", 1), ("malladi2022", 4)] if optimizer["name"] in ("adamw", "rmspropw") else []
        models += [("optimizer", 1)] if noise["name"] == "gaussian" else []
        found += [{"settings": case, "model": model, "substeps": substeps} for model, substeps in models]
    return found


def normals(path: dict[str, Any]) -> np.ndarray:
    """Normal numbers of a path, shape (steps, substeps, numbers per coordinate, coordinates)."""
    two = path["settings"]["optimizer"]["name"] in ("signum", "lion") and path["model"] == "sde"
    shape = (PATH_STEPS, path["substeps"], 1 + two, path["settings"]["dim"])
    return np.random.default_rng(0).standard_normal(shape).round(3)


def followed(path: dict[str, Any]) -> list[float]:
    """The library's x after the last step of a path."""
    import jax.numpy as jnp

    from sdelens.cases.starts import start_of
    from sdelens.integrate.euler import EulerMaruyama
    from sdelens.sdes import build_sde

    problem, noise, optimizer = subject(path["settings"])
    bound, numbers = noise.bind(problem), normals(path)
    state = optimizer.initial_state(problem, bound, jnp.asarray(problem.start)[:, None])
    if path["model"] == "optimizer":
        x, inner = state.x, optimizer.begin(state, problem.layout, None)
        for k in range(PATH_STEPS):
            z = jnp.asarray(numbers[k, 0, 0])[:, None] * bound.scales(x).reshape(-1, 1)
            x, inner = optimizer.advance(x, inner, problem.evaluate(x)[1] + z, problem.layout)
        return np.asarray(x)[:, 0].tolist()
    sde = build_sde(path["model"], problem, bound, optimizer)
    stepper = EulerMaruyama(
        sde, optimizer.lr, start_of(None, problem, optimizer), "sequential", path["substeps"], "gaussian"
    )
    size = math.sqrt(optimizer.lr / path["substeps"])
    for k, j in itertools.product(range(PATH_STEPS), range(path["substeps"])):
        dW = jnp.asarray(size * numbers[k, j].reshape(-1, 1))
        state = stepper.advance(jnp.asarray(k), j, state, problem.evaluate(state.x)[1], dW)
    return np.asarray(state.x)[:, 0].tolist()


# ── Rescaling ───────────────────────────────────────────────────────────────────────────────────────────────────────

_RUNS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"optimizer": "adamw", "lr": 3e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}, {}),
    ({"optimizer": "adamw", "lr": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}, {}),
    ({"optimizer": "adam", "lr": 1e-3, "b1": 0.9, "b2": 0.98, "eps": 1e-8, "weight_decay": 0.01}, {}),
    ({"optimizer": "rmspropw", "lr": 1e-3, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.1}, {}),
    ({"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4}, {}),
    ({"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}, {}),
    ({"optimizer": "signsgd", "lr": 1e-4, "weight_decay": 0.1}, {}),
    ({"optimizer": "momentum", "lr": 0.05, "b1": 0.9, "weight_decay": 0.01}, {}),
    ({"optimizer": "signum", "lr": 1e-4, "b1": 0.95, "weight_decay": 0.1}, {}),
    ({"optimizer": "lion", "lr": 1e-4, "b1": 0.9, "b2": 0.99, "weight_decay": 1.0}, {}),
]
_BATCHES = ((256, 1024), (64, 128), (512, 64), (256, 8192))
_VARIANTS: list[dict[str, Any]] = [
    {"rule": "linear"},
    {"rule": "none"},
    {"rule": "sqrt-lr"},
    {"rule": "goyal2017"},
    {"rule": "sqrt"},
    {"momentum": "half-life"},
    {"momentum": "time"},
    {"momentum": "fixed"},
]
_OF_ADAMW: list[dict[str, Any]] = [
    {"rule": "malladi2022"},
    {"rule": "marek2025"},
    {"rule": "bergsma2025"},
    {"rule": "signal-to-noise", "snr": 0.3},
    {"rule": "signal-to-noise", "snr": 4.0},
    {"momentum": "second-moment"},
]


def runs() -> list[dict[str, Any]]:
    """Arguments of every rescaling."""
    found = []
    for (given, options), (batch, to) in itertools.product(_RUNS, _BATCHES):
        found.append({"optimizer": given, "batch": batch, "to": to, "steps": 10_000, "warmup": 500, **options})
    for number, variant in itertools.product((0, 5, 9), _VARIANTS):
        found.append({"optimizer": _RUNS[number][0], "batch": 256, "to": 512, "steps": 9999, "warmup": 0, **variant})
    for number in (0, 5, 9):
        given = {**_RUNS[number][0], "decay": "independent"}
        found.append({"optimizer": given, "batch": 256, "to": 512, "steps": 100, "warmup": 1})
    for variant in _OF_ADAMW:
        found.append({"optimizer": _RUNS[0][0], "batch": 256, "to": 1024, "steps": 7, "warmup": 3, **variant})
    for snr in (0.2, 1.5):
        for number in (6, 9):
            more = {"rule": "signal-to-noise", "snr": snr, "steps": 1000, "warmup": 10}
            found.append({"optimizer": _RUNS[number][0], "batch": 32, "to": 128, **more})
    return found


def rescaled(run: dict[str, Any]) -> dict[str, Any]:
    """The library's account and code for one rescaling, or its refusal."""
    import sdelens as sl
    from sdelens.scaling.code import as_code

    options = {k: v for k, v in run.items() if k not in ("optimizer", "batch", "to")}
    try:
        found = sl.scaling.rescale(run["optimizer"], run["to"] / run["batch"], batch_size=run["batch"], **options)
    except ValueError as error:
        return {"error": str(error)}
    code = {}
    for form in ("torch", "optax"):
        try:
            code[form] = as_code(found, form)
        except ValueError:
            code[form] = None
    rows = [[r.name, r.before, r.after, r.factor, r.why, r.of] for r in found.account]
    return {"rule": found.rule, "momentum": found.momentum, "rows": rows, "code": code}


def write() -> None:
    """Compute all cases and write them."""
    import jax

    with jax.enable_x64(True):
        cases = [{"settings": case, "expected": expected(case)} for case in settings()]
        single = [{**path, "expected": followed(path)} for path in paths()]
    scaling = [{"run": run, "expected": rescaled(run)} for run in runs()]
    text = json.dumps({"cases": cases, "paths": single, "scaling": scaling}, ensure_ascii=False)
    GOLDEN.write_text(json.dumps(json.loads(text, parse_float=lambda t: float(f"{float(t):.10g}")), ensure_ascii=False))


if __name__ == "__main__":
    write()
