"""Rescaling of live PyTorch optimizers."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sdelens as sl  # noqa: E402
from sdelens.scaling import rescale  # noqa: E402
from sdelens.scaling.hyperparameters import read_dict  # noqa: E402
from sdelens.scaling.memory import square_factor  # noqa: E402
from tests.torch_runs import snapshot, trained  # noqa: E402


def test_a_live_adamw_is_changed_in_place_group_by_group():
    optimizer = trained("AdamW", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, amsgrad=True)
    optimizer.param_groups[1]["weight_decay"] = 0.0
    states = list(optimizer.state.values())
    before = [(s["exp_avg_sq"].clone(), s["max_exp_avg_sq"].clone(), s["exp_avg"].clone()) for s in states]
    account = sl.torch.rescale(optimizer, 4)
    assert account.optimizer is optimizer
    first, second = optimizer.param_groups
    assert (first["lr"], first["weight_decay"], second["weight_decay"]) == pytest.approx((2e-3, 0.2, 0.0))
    assert first["betas"] == pytest.approx((0.6, 0.96))
    assert "optimizer" not in first
    for state, (v, largest, m) in zip(states, before, strict=True):
        # All noise: a quarter, up to the error of the mean of 1500 squares, and k = 30 steps of 64 are 7.5 of 256.
        np.testing.assert_allclose((state["exp_avg_sq"] / v).numpy(), 0.25, rtol=0.1)
        np.testing.assert_allclose((state["max_exp_avg_sq"] / largest).numpy(), 0.25, rtol=0.1)
        assert (state["exp_avg"] == m).all()
        assert float(state["step"]) == pytest.approx(30 * np.log(0.99) / np.log(0.96))
    optimizer.step()
    kept = trained("AdamW", lr=1e-3)
    v = next(iter(kept.state.values()))["exp_avg_sq"].clone()
    sl.torch.rescale(kept, 2, accumulators="keep")
    assert (next(iter(kept.state.values()))["exp_avg_sq"] == v).all()


def test_after_a_jump_a_live_adamw_at_rest_stays_at_rest_and_with_kept_accumulators_does_not():
    """On ½x² under N(0, 1) noise, 20 000 independent coordinates: the mean loss over as many samples after the jump.

    Over the 400 steps that follow and over the 100 larger ones, in standard errors of the mean over coordinates; the
    limit of 5 is one false alarm in 1.7 million. What is left, to first order in ηk and 1 − β, is below 3 %.
    """
    torch.set_num_threads(1)

    def run(optimizer, x, steps, batch):
        total = torch.zeros_like(x)
        for _ in range(steps):
            x.grad = x.detach() + torch.randn_like(x) / batch**0.5
            optimizer.step()
            total += 0.5 * x.detach() ** 2
        return total / steps

    def begin(count):
        torch.manual_seed(count)
        x = torch.nn.Parameter(0.05 * torch.randn(20_000))
        optimizer = torch.optim.AdamW([x], lr=0.005, betas=(0.97, 0.99), weight_decay=0.5)
        run(optimizer, x, 1000, 1)
        return optimizer, x

    reference = run(*begin(0), 400, 1)
    found = {}
    for number, how in enumerate(("scale", "keep")):
        optimizer, x = begin(1 + number)
        sl.torch.rescale(optimizer, 4, accumulators=how)
        found[how] = run(optimizer, x, 100, 4)
    mean = float(reference.mean())
    sem = float(reference.std()) * (2 / 20_000) ** 0.5
    assert abs(float(found["scale"].mean()) - mean) < 5 * sem + 0.03 * mean
    assert float(found["keep"].mean()) < mean - 5 * sem - 0.06 * mean


def test_adams_l2_is_told_from_adamws_decay_and_a_tensor_lr_stays_a_tensor():
    rate = torch.tensor(1e-3)
    optimizer = trained("Adam", lr=rate, betas=(0.9, 0.99), weight_decay=0.1)
    account = sl.torch.rescale(optimizer, 4)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert any("L2" in r.why for r in account.account)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(2e-3)


def test_a_live_sgd_keeps_the_mean_of_gradients_in_its_buffer():
    """Just after the jump it moves by δη times the same mean."""
    optimizer = trained("SGD", lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=False)
    buffer = next(iter(optimizer.state.values()))["momentum_buffer"].clone()
    sl.torch.rescale(optimizer, 4)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == pytest.approx((1.6, 0.6, 1e-4))
    new = next(iter(optimizer.state.values()))["momentum_buffer"]
    torch.testing.assert_close(group["lr"] * new, 4 * 0.1 * buffer)


def test_a_live_rmsprop_and_a_scheduler():
    optimizer = trained("RMSprop", lr=1e-3, alpha=0.9, momentum=0.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0)
    v = next(iter(optimizer.state.values()))["square_avg"].clone()
    with pytest.warns(UserWarning, match="base_lrs"):
        sl.torch.rescale(optimizer, 2, momentum="half-life")
    group = optimizer.param_groups[0]
    assert (group["alpha"], group["momentum"], group["lr"]) == pytest.approx((0.81, 0.25, 1e-3 * 2**0.5 * 1.5))
    assert group["initial_lr"] == group["lr"]
    torch.testing.assert_close(next(iter(optimizer.state.values()))["square_avg"], v / 2)


def test_a_live_centred_rmsprop_keeps_its_variance_positive():
    """Gradients 1 + N(0, 1): of v, only what it has above the square of the mean belongs to the noise."""
    torch.manual_seed(0)
    x = torch.nn.Parameter(torch.zeros(100))
    optimizer = torch.optim.RMSprop([x], lr=1e-3, alpha=0.99, centered=True)
    for _ in range(500):
        x.grad = 1 + torch.randn(100)
        optimizer.step()
    state = optimizer.state[x]
    v, mean = state["square_avg"].clone(), state["grad_avg"].clone()
    sl.torch.rescale(optimizer, 4)
    torch.testing.assert_close(state["square_avg"], mean**2 + (v - mean**2) / 4)
    optimizer.step()
    assert bool(torch.isfinite(x).all())


def test_a_live_adam_of_complex_numbers_is_rescaled_by_both_of_their_parts():
    """Gradients N + i(5 + N): v of the real part is noise, that of the imaginary part is not."""
    torch.manual_seed(0)
    x = torch.nn.Parameter(torch.zeros(500, dtype=torch.complex64))
    optimizer = torch.optim.Adam([x], lr=1e-4, betas=(0.9, 0.99))
    for _ in range(300):
        noise = torch.randn(500, 2)
        x.grad = torch.complex(noise[:, 0], 5 + noise[:, 1])
        optimizer.step()
    v = torch.view_as_real(optimizer.state[x]["exp_avg_sq"]).clone()
    sl.torch.rescale(optimizer, 4)
    factor = torch.view_as_real(optimizer.state[x]["exp_avg_sq"]) / v
    # Mean squares over both parts: 25/2 of the gradient and 1 of noise.
    np.testing.assert_allclose(factor.numpy(), (12.5 + 0.25) / 13.5, rtol=0.02)


class Quantized(torch.Tensor):
    """A tensor whose numbers need not be its values."""


BREAKING = {
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "inference": torch.ones_like,
    "int": lambda t: t.long(),
    "own": lambda t: t.as_subclass(Quantized),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("exp_avg", None, r"group 1, parameter 0: exp_avg is missing \(the state has"),
        ("step", 30, "group 1, parameter 0: step is not a tensor"),
        ("exp_avg_sq", -1.0, "exp_avg_sq has values that are negative or not finite"),
        ("exp_avg_sq", np.inf, "exp_avg_sq has values that are negative or not finite"),
        ("exp_avg_sq", "meta", "exp_avg_sq is on the meta device"),
        ("exp_avg_sq", "sparse", "exp_avg_sq has the layout torch.sparse_coo"),
        ("exp_avg_sq", "inference", "exp_avg_sq was made in inference mode"),
        ("exp_avg_sq", "int", "exp_avg_sq is a tensor of torch.int64"),
        ("exp_avg_sq", "own", "exp_avg_sq is a Quantized, which may be quantized"),
        ("exp_avg", np.nan, "exp_avg has values that are not finite"),
        ("step", "int", "group 1, parameter 0: step is a tensor of torch.int64"),
        ("step", None, "group 1, parameter 0: step is missing"),
        ("step", "several", r"step is tensor.*; it must be one number, 0 or more"),
        ("step", "negative", r"step is -1.*; it must be one number, 0 or more"),
    ],
)
def test_a_broken_live_state_is_refused_and_nothing_is_changed(name, value, message):
    optimizer = trained("AdamW", lr=1e-3, betas=(0.9, 0.99))
    state = optimizer.state[optimizer.param_groups[1]["params"][0]]
    if value is None:
        del state[name]
    elif value in BREAKING:
        with torch.inference_mode(value == "inference"):
            state[name] = BREAKING[value](state[name])
    elif name == "step":
        state[name] = {"several": torch.ones(2), "negative": torch.tensor(-1.0)}.get(value, value)
    else:
        state[name][0] = value
    before = repr(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        sl.torch.rescale(optimizer, 4)
    assert repr(optimizer.state_dict()) == before


def test_other_live_optimizers_are_refused_and_a_refusal_changes_nothing():
    parameters = [torch.nn.Parameter(torch.ones(2))]
    with pytest.raises(TypeError, match=r"got torch\.optim\.\w+\.Adamax"):
        sl.torch.rescale(torch.optim.Adamax(parameters), 2)
    with pytest.raises(TypeError, match=r"sdelens\.torch\.rescale"):
        rescale(torch.optim.AdamW(parameters), 2)
    optimizer = trained("AdamW", lr=1e-3, betas=(0.9, 0.99))
    before = repr(optimizer.state_dict())
    with pytest.raises(ValueError, match="group 0: batch_ratio: got 16"):
        sl.torch.rescale(optimizer, 16)
    assert repr(optimizer.state_dict()) == before

    class Own(torch.optim.AdamW):
        pass

    own = Own(parameters, lr=1e-3)
    sl.torch.rescale(own, 4)
    assert own.param_groups[0]["lr"] == 2e-3


class Lion(torch.optim.Optimizer):
    """The state and groups of lion_pytorch's, with a step that leaves the parameters alone."""

    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["exp_avg"] = p.grad.clone()


class AdamP(torch.optim.Optimizer):
    """Likewise; its step count is a Python integer."""

    def __init__(self, params, **options):
        super().__init__(params, {"delta": 0.1, "wd_ratio": 0.1, "nesterov": False, "weight_decay": 0, **options})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].update(step=30, exp_avg=0.1 * p.grad, exp_avg_sq=p.grad**2)


def test_the_momentum_of_nadam_is_the_same_function_of_the_number_of_samples():
    """Against μᵢ = b1 (1 − 0.96^(iψ)/2) written out for the new numbers, up to the whole part of the step count."""
    optimizer = trained("NAdam", lr=1e-3, betas=(0.9, 0.99), momentum_decay=0.01)
    account = sl.torch.rescale(optimizer, 2)
    pace = math.log(0.98) / math.log(0.99)
    group, state = optimizer.param_groups[0], next(iter(optimizer.state.values()))
    assert group["momentum_decay"] == pytest.approx(0.01 * pace)
    assert group["betas"] == pytest.approx((0.8, 0.98))
    mus = [0.8 * (1 - 0.5 * 0.96 ** (i * 0.01 * pace)) for i in range(1, 16)]
    assert float(state["step"]) == pytest.approx(30 / pace)  # 14.92
    assert np.prod(mus) <= float(state["mu_product"]) <= np.prod(mus[:-1])
    assert any("NAdam is rescaled by the rule of Adam" in text for text in account.assumed)
    assert any(row.name == "momentum_decay" for row in account.account)


def test_a_measured_snr_gives_the_factor_of_second_moments():
    """(u² + 1/δ)/(u² + 1) = .625 for u = 1 and δ = 4, also where v could not be split."""
    for kind, name in (("AdamW", "exp_avg_sq"), ("RMSprop", "square_avg")):
        optimizer = trained(kind, lr=1e-3)
        v = next(iter(optimizer.state.values()))[name].clone()
        sl.torch.rescale(optimizer, 4, "signal-to-noise", snr=1.0)
        torch.testing.assert_close(next(iter(optimizer.state.values()))[name], 0.625 * v)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 4 * 0.625**0.5)


def test_radam_is_refused_where_its_rectification_would_switch_off():
    optimizer = trained("RAdam", lr=1e-3, betas=(0.9, 0.99))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="RAdam would no longer divide by the root"):
        sl.torch.rescale(optimizer, 8)
    assert snapshot(optimizer) == before
    sl.torch.rescale(optimizer, 2)
    assert float(next(iter(optimizer.state.values()))["step"]) == pytest.approx(30 * math.log(0.99) / math.log(0.98))


def test_adagrads_sum_of_squares_and_its_decay_of_the_learning_rate():
    """n/δ squares of gradients with a variance 1/δ as large: ÷ δ², and ε outside the root ÷ δ."""
    optimizer = trained("Adagrad", lr=0.1, lr_decay=0.01, weight_decay=0.1, eps=1e-8)
    total = next(iter(optimizer.state.values()))["sum"].clone()
    sl.torch.rescale(optimizer, 4)
    group, state = optimizer.param_groups[0], next(iter(optimizer.state.values()))
    torch.testing.assert_close(state["sum"], total / 16)
    assert (group["lr"], group["lr_decay"], group["weight_decay"], group["eps"]) == pytest.approx(
        (0.1, 0.04, 0.1, 2.5e-9)
    )
    assert float(state["step"]) == 7.5
    with pytest.raises(ValueError, match="eps: got 0"):
        sl.torch.rescale(trained("Adagrad", lr=0.1, eps=0), 4)


def test_lion_and_adamp_are_known_by_their_name_and_all_their_fields():
    p = torch.nn.Parameter(torch.zeros(100))
    p.grad = torch.ones(100)
    lion = Lion([p], lr=1e-3, weight_decay=0.1)
    lion.step()
    told = rescale({"optimizer": "lion", "lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}, 4).optimizer
    sl.torch.rescale(lion, 4)
    assert {k: lion.param_groups[0][k] for k in ("lr", "betas", "weight_decay")} == {
        k: v for k, v in told.items() if k != "optimizer"
    }
    adamp = AdamP([p], lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
    adamp.step()
    assert any("threshold delta" in text for text in sl.torch.rescale(adamp, 4).assumed)
    assert adamp.state[p]["step"] == pytest.approx(30 * math.log(0.99) / math.log(0.96))
    lion.param_groups[0]["beta3"] = 0.9
    with pytest.raises(TypeError, match=r"got .*Lion"):
        sl.torch.rescale(lion, 4)


def test_a_subclass_with_its_own_step_is_refused_by_name():
    class Bounded(torch.optim.AdamW):
        def step(self):
            super().step()

    optimizer = Bounded([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(TypeError, match="Bounded, which has its own step"):
        sl.torch.rescale(optimizer, 4)


def rescale_shards(rank, folder):
    """In one of two processes: a model sharded by FSDP2 is rescaled, and its factors of v are written."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    whole = lambda name: [s[name].full_tensor() for s in optimizer.state.values()]  # noqa: E731
    v, m = whole("exp_avg_sq"), whole("exp_avg")
    sl.torch.rescale(optimizer, 4)
    new = whole("exp_avg_sq")
    if rank == 0:
        torch.save((v, m, new), f"{folder}/found.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_states_sharded_over_two_processes_are_rescaled_by_averages_over_whole_tensors(tmp_path):
    torch.multiprocessing.spawn(rescale_shards, (tmp_path,), nprocs=2)
    numbers = read_dict({"optimizer": "adamw", "lr": 1e-3, "betas": (0.9, 0.99)}).numbers
    for v, m, new in zip(*torch.load(tmp_path / "found.pt"), strict=True):
        factor = square_factor(numbers, 4, 20, float(v.mean()), float(m.square().mean()))
        torch.testing.assert_close(new, v * factor)
