"""The names that users type, as plain text; imports no JAX, so that the shell starts quickly."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

from sdelens.core.declarations import (
    NOISES,
    OPTIMIZERS,
    WRAPPERS,
    NoiseDeclaration,
    OptimizerDeclaration,
    WrapperDeclaration,
)

__all__ = [
    "ACCUMULATORS",
    "ACCUMULATOR_STARTS",
    "BATCH_COVARIANCES",
    "BATCH_SIGNS",
    "BIAS_CORRECTIONS",
    "CODE_FORMATS",
    "COEFFICIENTS",
    "COMPRESSIONS",
    "DATASETS",
    "DECAYS",
    "DTYPES",
    "FORMS",
    "INCREMENTS",
    "INTEGRATORS",
    "MODELS",
    "MOMENTA",
    "NETWORKS",
    "OBSERVABLES",
    "ON_REQUEST",
    "OPTAX",
    "PROBLEMS",
    "SCALING_RULES",
    "SCHEDULES",
    "hyperparameters",
    "meanings",
    "noise_label",
    "optimizer_label",
    "point_label",
    "problem_label",
    "schedule_label",
    "value_labels",
]

OPTAX: Final = "optax:"
"""Prefix of the names of optax's optimizers in the shell."""
MODELS: Final = {
    "optimizer": "the discrete optimizer, through optax",
    "sde": "the first-order SDE: that of arXiv 2411.15958 for SGD, SignSGD, RMSprop and Adam",
    "full-noise": "the first-order SDE with the noise of V, and of the new M in X (RMSprop and Adam only)",
    "malladi2022": "the earlier SDE of arXiv 2205.10287 (RMSprop and Adam only)",
    "empirical": "an SDE whose coefficients come from updates of the optimizer itself",
    "second-order": "the SDE of weak order 2 of SGD, RMSprop and Adam; it differs from SGD and from the SDE "
    "'full-noise' only with substeps, and runs only if it is named",
}
ON_REQUEST: Final = ("full-noise", "second-order", "empirical")
"""Models that run only if they are named. With the default of one substep and normal noise, the first two are the
optimizer itself. The last takes as many times longer as it has samples; it runs by default if an optimizer has no SDE
in closed form."""
COEFFICIENTS: Final = {
    "sampled": "mean and covariance over sampled gradients",
    "quadrature": "expectations over the noise, computed by quadrature for each coordinate",
}
ACCUMULATORS: Final = {
    "lognormal": "log-normal noise",
    "update": "the optimizer's update, applied to a normal gradient; with substeps log-normal noise",
    "drift": "no noise in sums and means of squares",
}
PROBLEMS: Final = {
    "quadratic": "½ xᵀHx",
    "rosenbrock": "Σ (a − xᵢ)² + b (xᵢ₊₁ − xᵢ²)²",
    "embedded-saddle": "½ xᵀHx + ¼ λ Σx⁴ − ⅓ ξ Σx³",
    "quadratic-game": "minₓ max_y ½ xᵀAx + xᵀBy − ½ yᵀCy, its loss the Hamiltonian ½‖F‖²",
    "linear-regression": "½ E(φ·x − y)², φ normal with design_covariance, labels with label_noise",
    "mlp": "network of ReLU layers, by default depth=10 hidden layers of width=20, on breast-cancer",
    "cnn": "network of two convolutions with max-pooling and a dense layer, by default on digits",
    "resnet": "network of residual convolutions and a dense layer, by default on digits",
    "vit": "vision transformer on image patches, by default on digits",
    "transformer": "causal character-level language model, by default on python-docs",
}
NETWORKS: Final = ("mlp", "cnn", "resnet", "vit", "transformer")
DATASETS: Final = {
    "breast-cancer": "569 × 30, two classes, bundled with scikit-learn",
    "digits": "1797 images of 8 × 8, ten classes, bundled with scikit-learn",
    "mnist": "60000 images of 28 × 28, ten classes, from data_dir or OpenML",
    "fashion-mnist": "60000 images of 28 × 28, ten classes, from data_dir or OpenML",
    "cifar-10": "50000 images of 32 × 32 × 3, ten classes, from data_dir or OpenML",
    "python-docs": "the reference texts included in Python; the path of a UTF-8 text file selects that file instead",
}
COMPRESSIONS: Final = {
    "random-k": "randomly drawn coordinates, times d/k; keep is their share or their number k",
    "quantisation": "stochastic rounding to multiples of step",
    "majority-vote": "the sign that the majority of workers sends (signsgd)",
}
SCHEDULES: Final = {
    "cosine": "half a cosine over the given number of steps, from 1 down to end",
    "polynomial": "(1 + t)^-power in time t = kη",
    "warmup": "a linear increase over the given number of steps, then another schedule: warmup(100, cosine(1000))",
    "interpolated": "linear between the given steps and values: interpolated([0, 800, 1000], [1, 1, 0])",
}
INTEGRATORS: Final = {
    "sequential": "V, then M, then X, each with the newest values",
    "euler": "Euler-Maruyama with the new V",
}
INCREMENTS: Final = {
    "gaussian": "normal increments of Brownian motion",
    "rademacher": "plus or minus √Δt, one random bit each",
}
FORMS: Final = {
    "algorithm": "what holds for the discrete optimizer itself",
    "paper": "what arXiv 2411.15958 states for its SDE",
}
OBSERVABLES: Final = {
    "norm": "‖x‖",
    "grad_norm": "‖∇f‖",
    "noise_trace": "tr Σ, the noise's total variance",
    "spectral_norm": "the largest singular value of the parameters that are matrices",
    "nuclear_norm": "the sum of the singular values of the parameters that are matrices",
    "sharpness": "λ_max of ∇²f",
    "preconditioned_sharpness": "λ_max of P^−½ ∇²f P^−½, P = √v + ε with the run's own v",
    "batch_sharpness": "E gᵀ(∂g/∂x)g/‖g‖² for mini-batch gradients g",
}
DTYPES: Final = ("bfloat16", "float16", "float32", "float64")
BATCH_COVARIANCES: Final = ("exact", "diagonal")
BATCH_SIGNS: Final = ("edgeworth", "normal", "sampled")
BIAS_CORRECTIONS: Final = ("discrete", "exponential")
MOMENTA: Final = {
    "samples": "1 − β times the batch ratio δ: a mean remembers as many samples as before, to first order in 1 − β",
    "second-moment": "β₁ unchanged, β₂ to the power δ: the mean of squares keeps its half-life in samples, momentum "
    "keeps its damping, and every ratio is possible (Marek et al. 2025, arXiv 2507.07101)",
    "half-life": "β to the power δ: the half-life in samples is kept exactly, and every ratio is possible, but at a "
    "large ratio momentum loses its damping",
    "time": "1 − β times the factor of the learning rate: a mean remembers the same span of time t = kη as before",
    "fixed": "β unchanged: a mean remembers as many steps as before",
}
"""Rules by which the decays β of running means are scaled, by name."""
SCALING_RULES: Final = {
    "sqrt": "for sign and adaptive optimizers",
    "linear": "for SGD and momentum",
    "signal-to-noise": "between sqrt and linear, from the measured SNR",
    "none": "changes only the number of steps",
    "sign-momentum": "for Signum and Lion",
    "sum-of-squares": "for Adagrad",
    "malladi2022": "sqrt with θ unchanged",
    "sqrt-lr": "changes only lr, by √δ",
    "goyal2017": "changes only lr, by δ",
    "marek2025": "changes only β₂, to the power δ",
    "bergsma2025": "changes only θ, by δ",
}
CODE_FORMATS: Final = {"table": "with reasons", "json": "numbers", "torch": "code", "optax": "code"}
DECAYS: Final = ("coupled", "independent")
ACCUMULATOR_STARTS: Final = ("second-moment", "zero")


def meanings(declared: Mapping[str, OptimizerDeclaration | WrapperDeclaration | NoiseDeclaration]) -> dict[str, str]:
    """Names of declared optimizers or noise laws, with a short description of each."""
    return {name: declaration.meaning for name, declaration in declared.items()}


def optimizer_label(optimizer: dict[str, Any]) -> str:
    """An optimizer's name in tables and figures."""
    if optimizer.get("nesterov") and optimizer["name"] == "momentum":
        return "Nesterov momentum"
    name = str(optimizer["name"])
    if "optax" in optimizer:
        return f"{OPTAX}{name}"
    if "base" in optimizer:
        own = WRAPPERS[name].label_of(optimizer) if name in WRAPPERS else name
        return f"{own} on {optimizer_label(optimizer['base'])}"
    return OPTIMIZERS[name].label if name in OPTIMIZERS else name


def problem_label(problem: dict[str, Any]) -> str:
    """A problem's name in tables and figures, with its data set if there is one."""
    names = {"mlp": "MLP", "cnn": "CNN", "resnet": "ResNet", "vit": "ViT", "transformer": "transformer"}
    names |= {"rosenbrock": "Rosenbrock", "embedded-saddle": "embedded saddle", "quadratic-game": "quadratic game"}
    names |= {"linear-regression": "linear regression"}
    name = names.get(problem["name"], str(problem["name"]))
    name += " + L2" if "l2" in problem else ""
    if "samples" in problem:
        return f"{name} ({problem['samples']} examples)"
    if "dataset" not in problem:
        return name
    part = "" if problem.get("subset") is None else f", {problem['subset']} examples"
    return f"{name} ({PurePath(problem['dataset']).name}{part})"


def noise_label(noise: dict[str, Any]) -> str:
    """A noise law's name in tables and figures, with details that distinguish it from similar laws."""
    if noise["name"] == "distributed":
        sent = noise.get("compression")
        how = (
            "" if sent is None else " (" + " ".join([sent["name"], *(f"{v:g}" for v in list(sent.values())[1:])]) + ")"
        )
        return f"{noise['workers']} worker{'s' if noise['workers'] > 1 else ''}{how}, {noise_label(noise['noise'])}"
    if noise["name"] == "sum":
        return " + ".join(noise_label(term) for term in noise["terms"])
    if noise["name"] == "scheduled":
        return f"{noise_label(noise['noise'])}, changing with the step"
    if noise["name"] == "dp":
        how = f"C = {noise['clip']:g}, s = {noise['multiplier']:g}" + (", Poisson" if noise.get("poisson") else "")
        return f"DP ({how}), {noise_label(noise['noise'])}"
    declared = NOISES.get(noise["name"])
    name = str(noise["name"]) if declared is None else declared.label
    batches = noise["name"] == "minibatch"
    details = ["covariance"] if "covariance" in noise and not batches else []
    details += [f"ν = {noise['df']:g}"] if "df" in noise else []
    details += [f"B = {noise['batch_size']}"] if "batch_size" in noise else []
    details += ["independent"] if batches and noise.get("covariance") == "diagonal" else []
    details += ["epochs"] if batches and not noise.get("replacement", True) else []
    details += [str(noise[key]) for key in ("cdf", "sample") if key in noise]
    details += [f"scale {noise['scale']:g}"] if isinstance(noise.get("scale"), float) else []
    return f"{name} ({', '.join(details)})" if details else name


def hyperparameters(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and options of an optimizer's description, with those of the optimizer that it wraps, if any."""
    return {**hyperparameters(optimizer["base"]), **optimizer} if "base" in optimizer else dict(optimizer)


def point_label(point: dict[str, Any]) -> str:
    """A point of a sweep in words: ``lr=0.01, weight_decay=0``."""
    return ", ".join(f"{key}={value_labels([value])[0]}" for key, value in point.items())


def value_labels(values: list[Any]) -> list[str]:
    """Numbers with the fewest digits (at least three) that distinguish them; other values as plain text."""
    if not all(isinstance(value, float) for value in values):
        return [value_labels([value])[0] if isinstance(value, float) else str(value) for value in values]
    for digits in (3, 4, 6, 9):
        labels = [f"{value:.{digits}g}" for value in values]
        if len(set(labels)) == len(set(values)):
            return labels
    return [repr(value) for value in values]


def schedule_label(schedule: dict[str, Any]) -> str:
    """A schedule's name, with the name of the schedule that follows it, if any."""
    then = schedule.get("then")
    return f"{schedule['name']}, then {schedule_label(then)}" if then else str(schedule["name"])
