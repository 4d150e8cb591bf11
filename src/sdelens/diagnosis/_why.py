"""Why the moments of optimizers other than Adam tell nothing of signal and noise."""

__all__ = ["CORRECTED", "NO_FIRST", "NO_STATE", "WHY"]

NO_FIRST = (
    "it has a mean of squared gradients but no mean of gradients (RMSprop, or Adam with b1 = 0), so signal and "
    "noise cannot be separated; measure them from gradients instead"
)
NO_STATE = "it has no state yet (no step, or no gradient)"
_FACTORED = "keeps row and column means of squared gradients instead of a mean for every coordinate"
_DIVIDED = "averages gradients that are already divided by the root of the second moment"
CORRECTED = "corrects the bias within its means, so that they are not weighted as Adam's"
_AVERAGED = "schedule-free training keeps a mean of parameters in place of a mean of gradients"
WHY = {
    "adopt": f"ADOPT {_DIVIDED}, in which the present gradient is left out",
    "laprop": f"LaProp {_DIVIDED}",
    "adan": "Adan has three means, and its squares are those of a gradient plus a multiple of its last change",
    "stableadamw": f"StableAdamW {CORRECTED}",
    "came": f"CAME {_FACTORED}",
    "adafactor": f"Adafactor {_FACTORED}",
    "sparseadam": "SparseAdam moves the means of a row only when it has a gradient, but counts every step",
    "adamax": "Adamax keeps the largest gradient instead of a mean of squares",
    "yogi": "the second moment of Yogi is not a mean of squares: it moves by their size, whatever the distance",
    "lamb": "LAMB divides the step of each tensor by its norm, so that the rule of Adam does not describe it",
    "prodigy": "Prodigy weights the gradients in its means by its changing estimate of the distance",
    "dadaptadam": "D-Adaptation weights the gradients in its means by its changing estimate of the distance",
    "galore": "the moments of GaLore are those of projected gradients",
    "momo": "MoMo chooses its learning rate from the loss, so that the rule of Adam does not describe it",
    "centred": "centred RMSprop averages gradients only to centre their squares; its rule is not that of Adam",
    "ademamix": "AdEMAMix adds a second, slow mean of gradients, so that the rule of Adam does not describe it",
    "soap": "the squares of SOAP are those of gradients in a rotated basis",
    "shampoo": "Shampoo keeps matrices of second moments instead of squares of coordinates",
    "muon": "Muon keeps a mean of gradients but no mean of their squares",
    "lion": "Lion keeps a mean of gradients but no mean of their squares",
    "adamwschedulefree": _AVERAGED,
    "radamschedulefree": _AVERAGED,
    "sgdschedulefree": _AVERAGED,
    "sgd": "SGD keeps no mean of squared gradients",
    "rmsprop": NO_FIRST,
    "adadelta": NO_FIRST,
    "adagrad": "Adagrad keeps a sum of squared gradients instead of a mean, and no mean of gradients",
    "adabelief": "the second moment of AdaBelief is that of g − m, not of g",
    "novograd": "NovoGrad keeps one second moment per tensor",
}
"""Why moments of other optimizers are not used, by the name of their class in small letters."""
