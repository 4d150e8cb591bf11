"""Networks by name."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import equinox as eqx
import jax
import numpy as np

from sdelens.core import check
from sdelens.core.names import DATASETS, NETWORKS
from sdelens.data import Dataset, is_text, load_dataset, load_text
from sdelens.problems._problem import Problem
from sdelens.problems.networks._losses import accuracy, binary_accuracy, binary_cross_entropy, cross_entropy
from sdelens.problems.networks.cnn import CNN
from sdelens.problems.networks.mlp import MLP
from sdelens.problems.networks.resnet import ResNet
from sdelens.problems.networks.transformer import Transformer
from sdelens.problems.networks.vit import ViT

__all__ = ["network", "sizes_of"]


@dataclass(frozen=True)
class _Defaults:
    """Default data set and sizes of an architecture; a size of None is chosen from the data."""

    dataset: str
    sizes: Mapping[str, int | None]


_ATTENTION: Final = dict(width=48, depth=3, heads=6, mlp=192)
_DEFAULTS: Final = {
    "mlp": _Defaults("breast-cancer", dict(width=20, depth=10)),
    "cnn": _Defaults("digits", dict(channels=32, dense=128)),
    "resnet": _Defaults("digits", dict(channels=32, blocks=1, dense=128)),
    "vit": _Defaults("digits", dict(patch=None, **_ATTENTION)),
    "transformer": _Defaults("python-docs", dict(**_ATTENTION, context=32)),
}


def sizes_of(name: str) -> dict[str, int | None]:
    """Names and defaults of the sizes of a network; a default of None is chosen from the data."""
    return dict(_DEFAULTS[name].sizes)


def network(
    name: str,
    dataset: str | os.PathLike[str] | None = None,
    *,
    subset: int | None = None,
    data_seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    dtype: str = "float32",
    gradient_dtype: str | None = None,
    **size: int | None,
) -> Problem:
    """A neural network's training loss on a data set, as a `Problem` with a metric ``"accuracy"``.

    =================  ===============================================================  ============================
    name               network                                                          sizes and their defaults
    =================  ===============================================================  ============================
    ``"mlp"``          `depth` hidden layers of `width` ReLU units                      width=20, depth=10
    ``"cnn"``          twice 3 × 3 convolution, ReLU, 2 × 2 max-pooling; dense, ReLU    channels=32, dense=128
    ``"resnet"``       3 × 3 convolution, `blocks` residual ones, pooling; dense, ReLU  channels=32, blocks=1, dense=128
    ``"vit"``          vision transformer, `mlp` hidden units a block                   patch, width=48, depth=3,
                                                                                        heads=6, mlp=192
    ``"transformer"``  causal language model of characters                              width=48, depth=3, heads=6,
                                                                                        mlp=192, context=32
    =================  ===============================================================  ============================

    The loss of an example is −log p(label): by one logit and the sigmoid for an MLP with two classes, else by softmax.
    For the language model the loss and the accuracy are means over the window's positions, each of which predicts the
    next character. Features are standardised to mean 0 and variance 1 over the examples used: each column of a table,
    each channel of images.

    Args:
        name: the architecture.
        dataset: a name or file of `load_dataset`; default: breast-cancer for mlp, digits for the networks on images,
            python-docs for transformer. An MLP takes tables and images, which it flattens; transformer takes texts.
        subset: number of examples, as in `load_dataset`; None takes all, and each full gradient then uses all of them.
        data_seed: seed of the subset.
        data_dir: folder with the data set's files.
        seed: seed of the initialisation.
        dtype: dtype of parameters, losses and states: ``"float32"``, or ``"float64"`` if it is enabled in JAX.
        gradient_dtype: dtype of gradients if it differs, as in `Problem`.
        **size: sizes of the architecture, as above; the default `patch` is 2 for sides below 16, else 4.

    Returns:
        A `Problem` with `data`; 10 layers of 20 on Breast Cancer have d = 4421 parameters.

    Raises:
        ValueError: if a name is unknown, a size is unknown, less than 1 or not a divisor where it must be one, or the
            architecture does not accept such data; also the errors of `load_dataset`.
    """
    check.choice("name", name, NETWORKS)
    dtype = check.float_dtype("dtype", dtype, ("float32", "float64"))
    defaults = _DEFAULTS[name]
    for option in size:
        check.choice(f"{name}'s sizes", option, defaults.sizes)
    sizes = {**defaults.sizes, **{key: value for key, value in size.items() if value is not None}}
    sizes = {key: None if value is None else check.at_least(key, value, 1) for key, value in sizes.items()}
    seed, data_seed = check.at_least("seed", seed, 0), check.at_least("data_seed", data_seed, 0)
    dataset = defaults.dataset if dataset is None else os.fspath(dataset)
    _check_kind(name, dataset)
    context = sizes.get("context")
    data = load_dataset(dataset, subset=subset, seed=data_seed, data_dir=data_dir, context=context)
    if name == "vit" and sizes["patch"] is None:
        sizes["patch"] = 2 if data.features.shape[1] < 16 else 4
    features, model = _BUILD[name](dataset, data, sizes, seed)
    binary = name == "mlp" and data.classes == 2
    labels = data.labels.astype(np.float32 if binary else np.int32)
    model = jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, model)
    features = features.astype(dtype) if np.issubdtype(features.dtype, np.floating) else features
    description: dict[str, Any] = dict(
        name=name,
        dataset=dataset,
        subset=None if subset is None else int(subset),
        data_seed=data_seed,
        data_dir=None if data_dir is None else os.fspath(data_dir),
        seed=seed,
        dtype=dtype,
        gradient_dtype=gradient_dtype,
        **sizes,
    )
    return Problem(
        binary_cross_entropy if binary else cross_entropy,
        model,
        (features, labels),
        infimum=0.0,
        metrics={"accuracy": binary_accuracy if binary else accuracy},
        gradient_dtype=gradient_dtype,
        _description=description,
    )


def _check_kind(name: str, dataset: str) -> None:
    """Refuse data of a kind that the architecture does not accept, before they are loaded."""
    text = is_text(dataset)
    if not text:
        check.choice("dataset", dataset, DATASETS)
    kind = "a text" if text else "a table" if dataset == "breast-cancer" else "images"
    takes = {"mlp": ("a table", "images"), "transformer": ("a text",)}.get(name, ("images",))
    if kind not in takes:
        known = {"images": "digits", "a text": "python-docs or the path of a text file"}
        raise ValueError(
            f"dataset: got {dataset!r} ({kind}), but {name} takes {' or '.join(takes)}; give {known[takes[-1]]}."
        )


def _mlp(dataset: str, data: Dataset, sizes: dict[str, Any], seed: int) -> tuple[np.ndarray, Any]:
    features = _standardised(data.features).reshape(len(data.features), -1)
    outputs = 1 if data.classes == 2 else data.classes
    layers = (features.shape[1], *[sizes["width"]] * sizes["depth"], outputs)
    return features, MLP.initialise(layers, seed)


def _classifier(kind: Any) -> Callable[..., tuple[np.ndarray, Any]]:
    """A function that builds a network for images."""

    def build(dataset: str, data: Dataset, sizes: dict[str, Any], seed: int) -> tuple[np.ndarray, Any]:
        model = kind.initialise(data.features.shape[1:], data.classes, seed, **sizes)
        return _standardised(data.features), model

    return build


def _language_model(dataset: str, data: Dataset, sizes: dict[str, Any], seed: int) -> tuple[np.ndarray, Any]:
    vocabulary = len(load_text(dataset).vocabulary)
    return data.features, Transformer.initialise(vocabulary, seed=seed, **sizes)


_BUILD: Final[dict[str, Callable[..., tuple[np.ndarray, Any]]]] = {
    "mlp": _mlp,
    "cnn": _classifier(CNN),
    "resnet": _classifier(ResNet),
    "vit": _classifier(ViT),
    "transformer": _language_model,
}


def _standardised(features: np.ndarray) -> np.ndarray:
    """Features with mean 0, variance 1 per column of a table or channel of images, in float32; constants become 0."""
    if features.ndim == 2:
        spread = features.std(axis=0)
        return ((features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    result = np.empty(features.shape, np.float32)
    for channel in range(features.shape[-1]):
        values = features[..., channel].astype(np.float32)
        spread = values.std(dtype=np.float64)
        result[..., channel] = (values - values.mean(dtype=np.float64)) / (spread if spread > 0 else 1)
    return result
