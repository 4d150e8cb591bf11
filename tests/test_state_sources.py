"""Which optimizer keeps a state, and the moments of its tensors: PyTorch, optax and plain dictionaries."""

import jax
import numpy as np
import optax
import pytest

from sdelens.diagnosis._checkpoint import from_files
from sdelens.diagnosis._sources import in_memory
from tests.states import BASE, FLAGS, MEANS, assert_moments, by_name, needs_torch, reasons, saved, torch, trained

# Which optimizer


@needs_torch
@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam"])
def test_types_that_are_known(name):
    kind = getattr(torch.optim, name)
    _, optimizer = trained(lambda m: kind(m.parameters(), betas=(0.8, 0.95), weight_decay=0.1))
    found = list(in_memory(optimizer))
    state = next(iter(optimizer.state.values()))
    assert found[0].m is state["exp_avg"]
    assert found[0].v is state["exp_avg_sq"]
    assert [(t.steps, t.b1, t.b2, t.optimizer) for t in found] == [(3, 0.8, 0.95, f"torch.optim.{name}")] * 6
    assert {t.weight_decay for t in found} == {0.1 if name == "AdamW" else 0.0}
    assert_moments(in_memory(optimizer.state_dict()), found)

    class Named(kind):
        """A subclass that takes over the step."""

    class Own(kind):
        def step(self, closure=None):
            return super().step(closure)

    _, optimizer = trained(lambda m: Named(m.parameters()))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps the step of the instance
    assert reasons(in_memory(optimizer)) == {None}
    _, optimizer = trained(lambda m: Own(m.parameters()))
    (why,) = reasons(in_memory(optimizer))
    assert why.startswith("Own has a step of its own in place of that of ")


@needs_torch
def test_wrappers_of_training_loops_are_taken_off():
    _, optimizer = trained()

    class AcceleratedOptimizer(torch.optim.Optimizer):
        def __init__(self, inside):
            self.optimizer = inside

    class LightningOptimizer:
        def __init__(self, inside):
            self._optimizer = inside

    assert_moments(in_memory(AcceleratedOptimizer(LightningOptimizer(optimizer))), in_memory(optimizer))


@needs_torch
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("SGD", "SGD keeps no mean of squared gradients"),
        ("Adamax", "Adamax keeps the largest gradient"),
        ("RMSprop", "no mean of gradients"),
        ("Adagrad", "sum of squared gradients"),
        ("Rprop", "no first and second moment"),
    ],
)
def test_live_optimizers_of_pytorch_without_moments(kind, said):
    _, optimizer = trained(lambda m: getattr(torch.optim, kind)(m.parameters(), lr=1e-3))
    for tensors in (list(in_memory(optimizer)), list(in_memory(optimizer.state_dict()))):
        assert all(tensor.reason for tensor in tensors)
    found = list(in_memory(optimizer))
    assert said in found[0].reason
    assert [tensor.size for tensor in found] == [12, 4, 4, 4, 8, 2]


@needs_torch
@pytest.mark.parametrize("made", ["sparse", "lamb", "own"])
def test_live_optimizers_with_the_fields_of_adam(made):
    """The type decides, whatever the fields."""

    class FusedLAMB(torch.optim.Optimizer):
        def step(self, closure=None):
            """Its state is set below."""

    class Inventive(FusedLAMB):
        def step(self, closure=None):
            """As above."""

    x = torch.nn.Parameter(torch.ones(2, 3))
    optimizer, said = {
        "sparse": (torch.optim.SparseAdam([x]), "SparseAdam moves the means of a row only when it has a gradient"),
        "lamb": (FusedLAMB([x], BASE), "LAMB divides the step of each tensor by its norm"),
        "own": (Inventive([x], BASE), "it is not known how "),
    }[made]
    optimizer.state[x] = {**{name: torch.ones(2, 3) for name in MEANS}, "step": 7}
    (found,) = in_memory(optimizer)
    assert found.reason.startswith(said)
    assert found.v is None
    assert found.size == 6


@needs_torch
@pytest.mark.parametrize(
    ("fields", "group", "decay"),
    [
        ({**MEANS, "step": 7}, {**BASE, "amsgrad": False}, None),  # PyTorch before 1.12, fairseq
        ({**MEANS, "step": 7}, {**BASE, **FLAGS, "amsgrad": False, "fused": None, "decoupled_weight_decay": True}, 0.1),
        ({**MEANS, "step": 7, "mu_product": 0.5}, {**BASE, "momentum_decay": 4e-3, "decoupled_weight_decay": False}, 0),
        (MEANS, {**BASE, "bias_correction": True, "step": 7}, None),  # FusedAdam of apex
        ({**MEANS, "step": 7}, {**BASE, "bias_correction": True, "amsgrad": False}, None),  # DeepSpeedCPUAdam
        ({**MEANS, "step": 7}, {**BASE, "correct_bias": True}, 0.1),  # transformers
        ({**MEANS, "step": 7}, {**BASE, "use_muon": False}, 0.1),
        (dict(step=7, state1=None, state2=None), {**BASE, "alpha": 0.0, "t_alpha": None, "t_beta3": None}, 0.1),
    ],
)
def test_full_matches_of_fields(fields, group, decay):
    state = saved(fields, {**group, "initial_lr": 1e-3, "lr_scale": 0.5, "name": "body"})
    (found,) = in_memory(state)
    held = state["state"][0]
    assert found.reason is None
    assert found.m is held.get("exp_avg", held.get("state1"))
    assert found.v is held.get("exp_avg_sq", held.get("state2"))
    assert (found.steps, found.b1, found.b2, found.group, found.size) == (7, 0.9, 0.99, "body", 6)
    assert found.weight_decay == decay
    state["param_groups"][0]["clip_lambda"] = 1
    (found,) = in_memory(state)
    assert "clip_lambda" in found.reason
    assert found.size == 6


@needs_torch
@pytest.mark.parametrize(
    ("fields", "group", "said"),
    [
        pytest.param(
            {**MEANS, "step": 7}, {**BASE, **FLAGS, "decouple": True, "clip_lambda": None, "fused": None},
            "clip_lambda, decouple and it lacks amsgrad", id="ADOPT",
        ),
        pytest.param(MEANS, {**BASE, "step": 7, "centered": False}, "it also has centered, step", id="LaProp"),
        pytest.param(
            {**MEANS, "step": 7, "exp_avg_diff": None, "previous_grad": None},
            {**BASE, "betas": (0.98, 0.92, 0.99)}, "3 betas", id="Adan",
        ),
        pytest.param(
            {**MEANS, "exp_avg_slow": None, "step": 7}, {**BASE, "betas": [0.9, 0.99, 0.9999]}, "3 betas", id="AdEMAMix"
        ),
        pytest.param({**MEANS, "kahan_comp": 0, "step": 7}, BASE, "kahan_comp", id="StableAdamW"),
        pytest.param(dict(exp_avg=None, exp_avg_sq_row=None, step=7), BASE, "no first and second moment", id="CAME"),
        pytest.param(
            {**MEANS, "step": 7}, dict(lr=1, betas=(0.9, 0.99), eps=1e-8, maximize=False),
            "lacks amsgrad, weight_decay", id="SparseAdam",
        ),
        pytest.param(dict(exp_avg=None, exp_inf=None, step=7), {**BASE, **FLAGS}, "exp_inf", id="Adamax"),
        pytest.param({**MEANS, "step": 7}, {**BASE, "initial_accumulator": 1e-6}, "initial_accumulator", id="Yogi"),
        pytest.param({**MEANS, "step": 7}, BASE, "it lacks amsgrad", id="LAMB"),
        pytest.param(
            {**MEANS, "s": None, "p0": None, "step": 7}, {**BASE, "d": 1, "k": 7}, "also has d, k, p0, s", id="Prodigy"
        ),
        pytest.param(
            {**MEANS, "GG": [], "Q": None, "step": 7}, {**BASE, "shampoo_beta": -1}, "GG, Q, shampoo_beta", id="SOAP"
        ),
        pytest.param(dict(momentum_buffer=None), dict(lr=1e-3, momentum=0.95), "momentum_buffer", id="Muon"),
        pytest.param(dict(z=None, exp_avg_sq=None), {**BASE, "k": 7}, "no mean of gradients", id="schedule-free"),
        pytest.param(
            dict(step=7, state1=None, state2=None, unorm_vec=None),
            {**BASE, "alpha": 0.0, "t_alpha": None, "t_beta3": None}, "it also has unorm_vec", id="bitsandbytes' LAMB",
        ),
        pytest.param(
            dict(step=7, state1=None, state2=None),
            {**BASE, "alpha": 5.0, "t_alpha": None, "t_beta3": None, "betas": (0.9, 0.99, 0.9999)}, "3 betas",
            id="bitsandbytes' AdEMAMix",
        ),
        pytest.param(dict(step=7, state1=None, state2=None, qmap1=None), BASE, "8 bits", id="8 bits"),
        pytest.param({**MEANS, "step": 7}, {}, "no parameter groups", id="no groups"),
        pytest.param(MEANS, {**BASE, "amsgrad": False}, "number of steps is missing", id="no step"),
        pytest.param({}, dict(lr=1e-3, momentum=0.0), "no betas", id="SGD"),
    ],
)  # fmt: skip
def test_fields_that_are_not_those_of_adam(fields, group, said):
    state = saved(fields, group)
    if not group:
        state["param_groups"] = []
    (found,) = in_memory(state)
    assert said in found.reason
    assert found.v is None
    assert found.size == (6 if fields else None)


@needs_torch
def test_what_is_no_array_of_numbers_is_a_reason():
    group = {**BASE, "amsgrad": False}
    for moment, said in (
        (torch.ones(2, 3, dtype=torch.uint8), "uint8"),
        (torch.ones(2, 3, device="meta"), "'meta'"),
        (object(), "builtins.object, which cannot be read"),
    ):
        state = saved({**MEANS, "step": 7}, group)
        state["state"][0]["exp_avg"] = moment
        (found,) = in_memory(state)
        assert said in found.reason
    state = saved({**MEANS, "step": torch.tensor([1.0, 2.0])}, group)
    with pytest.raises(ValueError, match=r"its step has shape \(2,\)"):
        list(in_memory(state))


@needs_torch
def test_bitsandbytes_with_the_dictionary_that_it_saves():
    group = {**BASE, "alpha": 0.0, "t_alpha": None, "t_beta3": None}
    plain = saved(dict(step=7, state1=None, state2=None), group)
    held = plain["state"][0]
    moved = {"step": 7, "__bnb_optimizer_quant_state__": {k: held[k] for k in ("state1", "state2")}}
    assert_moments(in_memory({**plain, "state": {0: moved}}), in_memory(plain))


@needs_torch
def test_what_muon_leaves_to_adam_is_all_that_is_covered():
    """Of 128 × 163 + 544 numbers, Adam has the 544; each of the others is named with its size."""
    adam = saved({**MEANS, "step": 7}, {**BASE, "use_muon": False}, (544,))
    muon = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0, "use_muon": True, "params": [1]}
    state = {
        "state": {**adam["state"], 1: {"momentum_buffer": torch.ones(128, 163)}},
        "param_groups": [*adam["param_groups"], muon],
    }
    found = list(in_memory(state))
    assert [(t.reason is None, t.size) for t in found] == [(True, 544), (False, 128 * 163)]
    assert "momentum_buffer" in found[1].reason


# Complex numbers


@needs_torch
@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam"])
def test_complex_moments_are_those_of_real_and_imaginary_parts(name):
    torch.manual_seed(2)
    number = torch.nn.Parameter(torch.randn(5, dtype=torch.complex64))
    real = torch.nn.Parameter(torch.view_as_real(number.detach()).clone())
    optimizers = [getattr(torch.optim, name)([x], betas=(0.9, 0.95), weight_decay=0.1) for x in (number, real)]
    for _ in range(4):
        number.grad = torch.randn(5, dtype=torch.complex64) + (3 + 5j)
        real.grad = torch.view_as_real(number.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
    (one,), (two,) = (list(in_memory(optimizer)) for optimizer in optimizers)
    assert one.size == 10
    for part in ("m", "v", "x"):
        assert torch.equal(getattr(one, part), getattr(two, part).detach())
    assert_moments(in_memory(optimizers[0].state_dict()), in_memory(optimizers[1].state_dict()))


def test_complex_moments_of_optax_keep_both_parts():
    tx, params = optax.adam(1e-3), np.ones(4, np.complex64)
    gradient = np.asarray([1 + 2j, 3 - 1j, 0.5j, 2.0], np.complex64)
    state = jax.jit(lambda g: tx.update(g, tx.init(params), params)[1])(gradient)
    (found,) = in_memory(state)
    np.testing.assert_allclose(found.m, 0.1 * np.array([[1, 2], [3, -1], [0, 0.5], [2, 0]]), rtol=1e-6)
    np.testing.assert_allclose(found.v.sum(-1), 1e-3 * np.array([5, 10, 0.25, 4]), rtol=1e-5)


# Optax

PARAMETERS = {"body": np.ones((4, 3), np.float32), "head": np.ones(5, np.float32)}


def stepped(tx):
    """A state after one step, by one program."""
    gradient = {name: np.arange(1.0, 1 + x.size, dtype=np.float32).reshape(x.shape) for name, x in PARAMETERS.items()}
    return jax.jit(lambda g: tx.update(g, tx.init(PARAMETERS), PARAMETERS)[1])(gradient)


def outline(tx):
    """A state without numbers, which costs no program."""
    return jax.eval_shape(tx.init, PARAMETERS)


@pytest.mark.parametrize(
    ("tx", "said"),
    [
        (optax.lion(1e-3), "Lion keeps a mean of gradients"),
        (optax.sgd(1e-3, momentum=0.9), "SGD keeps no mean"),
        (optax.sgd(1e-3), "SGD without momentum"),
        (optax.adan(1e-3), "Adan has three means"),
        (optax.rmsprop(1e-3, centered=True), "centred RMSprop"),
        (optax.novograd(1e-3), "NovoGrad"),
        (optax.adafactor(1e-3), "Adafactor keeps row and column means"),
        (optax.contrib.ademamix(1e-3), "AdEMAMix"),
        (optax.inject_hyperparams(optax.adamax)(1e-3), "adamax, yogi or adopt"),
        (optax.inject_hyperparams(optax.yogi)(1e-3), "adamax, yogi or adopt"),
        (optax.inject_hyperparams(optax.lamb)(1e-3), "LAMB divides the step"),
    ],
)
def test_optax_states_that_cannot_tell(tx, said):
    for tensor in in_memory(outline(tx)):
        assert said in tensor.reason
        assert tensor.v is None


def test_what_optax_leaves_out_is_named():
    matrices = optax.contrib.muon(1e-3)
    found = by_name(in_memory(stepped(matrices)))
    assert {name.rpartition(" ")[2]: (t.reason is None, t.size) for name, t in found.items()} == {
        "head": (True, 5),
        "body": (False, 12),
    }
    assert "Muon" in next(t.reason for t in found.values() if t.reason)
    labels = {"body": "one", "head": "two"}
    mixed = stepped(optax.partition({"one": optax.adam(1e-3), "two": optax.sgd(0.1, momentum=0.9)}, labels))
    assert {name: t.size for name, t in by_name(in_memory(mixed)).items()} == {"one: body": 12, "two: head": 5}
    frozen = stepped(optax.partition({"one": optax.adam(1e-3), "two": optax.set_to_zero()}, labels))
    assert {name: (t.size, t.reason is None) for name, t in by_name(in_memory(frozen)).items()} == {
        "one: body": (12, True),
        "two": (None, False),
    }
    several = optax.MultiSteps(optax.chain(optax.adam(1e-3), optax.trace(0.9)), 1)
    assert reasons(in_memory(stepped(several))) == {None}  # other accumulators of the same parameters are not left out


def test_the_type_of_an_optax_state_leaves_a_remark_unless_more_is_known():
    adam = list(in_memory(stepped(optax.adam(1e-3))))
    assert all("yogi, adamax and adopt" in t.remark for t in adam)
    injected = list(in_memory(stepped(optax.inject_hyperparams(optax.adamw)(1e-3, b1=0.9, b2=0.95))))
    assert [(t.remark, round(t.b1, 6), round(t.b2, 6)) for t in injected] == [(None, 0.9, 0.95)] * 2
    assert all("AMSGrad" in t.remark for t in in_memory(stepped(optax.amsgrad(1e-3))))


def test_states_that_were_restored_without_their_types():
    tx = optax.chain(optax.clip(1e3), optax.inject_hyperparams(optax.adamw)(1e-3, b1=0.9, b2=0.95))
    parts = {"one": tx, "two": optax.sgd(0.1, momentum=0.9), "three": optax.set_to_zero()}
    assert_restored(stepped(tx))
    assert_restored(stepped(optax.partition(parts, {"body": "one", "head": "two"})))
    with pytest.raises(ValueError, match=r"it contains no optimizer state \(its content: step, params\)"):
        in_memory({"step": 1, "params": {"body": np.ones((4, 3))}})


def assert_restored(state):
    wanted = list(in_memory(state))

    def plain(node, numbered):
        if hasattr(node, "_fields"):
            return {name: plain(getattr(node, name), numbered) for name in node._fields} or None
        if isinstance(node, tuple):
            parts = [plain(part, numbered) for part in node]
            return numbered(parts)
        return {k: plain(v, numbered) for k, v in node.items()} if isinstance(node, dict) else np.asarray(node)

    for numbered in (
        list,
        tuple,
        lambda parts: {str(i): p or {} for i, p in enumerate(parts)},
        lambda parts: dict(enumerate(parts)),
    ):
        train_state = {"step": 1, "params": {"body": np.ones((4, 3))}, "opt_state": plain(state, numbered)}
        found = list(in_memory(train_state))
        assert [(t.name, t.reason, t.shape) for t in found] == [(t.name, t.reason, t.shape) for t in wanted]
        assert_moments([t for t in found if not t.reason], [t for t in wanted if not t.reason])


def test_dictionaries_of_the_user_have_no_other_fields():
    with pytest.raises(ValueError, match="besides the moments it has n, prev_grad, which Adam has not"):
        in_memory({"m": np.ones(3), "v": np.ones(3), "n": np.ones(3), "prev_grad": np.ones(3), "step": 3})


def test_orbax_folders(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    state = stepped(optax.inject_hyperparams(optax.adamw)(1e-3, b1=0.9, b2=0.95))
    with orbax.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "run" / "7" / "default", {"params": PARAMETERS, "opt_state": state})
    (tmp_path / "run" / "7" / "_CHECKPOINT_METADATA").touch()
    (tmp_path / "run" / "6").mkdir()
    (tmp_path / "run" / "6" / "_CHECKPOINT_METADATA").touch()
    for folder in (tmp_path / "run" / "7" / "default", tmp_path / "run"):
        assert_moments(from_files(folder), in_memory(state))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match="cannot be restored by Orbax without a target"):
        list(from_files(tmp_path / "broken"))
