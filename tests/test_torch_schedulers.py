"""Schedulers of PyTorch at another batch size: runs of 500 steps, rescaled after some of them."""

import math
import pickle

import pytest

torch = pytest.importorskip("torch")

import sdelens as sl  # noqa: E402
from tests.torch_runs import SCHEDULERS, STEPS, same, scheduled, schedules, snapshot, trained  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning", "ignore:.*epoch parameter.*")


def counted(scheduler):
    return scheduler.last_epoch if hasattr(scheduler, "last_epoch") else scheduler._schedulers[0].last_epoch


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("ratio", "at"), [(4, 98), (3, 151), (0.5, 37), (2.5, 0), (4, 250)])
def test_a_scheduler_is_the_same_function_of_samples_times_the_factor_of_lr(name, ratio, at):
    """At new step k it must lie between the smallest and the largest value at old steps within one step of kδ."""
    make = SCHEDULERS[name]
    *_, before, momenta = scheduled(make, STEPS)
    optimizer, scheduler, *_ = scheduled(make, at)
    assert sl.torch.rescale(optimizer, ratio, scheduler=scheduler, interval="step").scheduler is scheduler
    group, factor, wide = optimizer.param_groups[0], ratio**0.5, max(ratio, 1)
    first = counted(scheduler)
    for k in range(first, int((STEPS - 1) / ratio)):
        near = slice(max(0, math.floor(k * ratio - wide)), math.ceil(k * ratio + wide) + 1)
        slack = 2e-3 * before.max() if wide == 1 else 1e-9  # between two old steps, a maximum may be higher
        assert before[near].min() - slack <= group["lr"] / factor <= before[near].max() + slack
        if getattr(scheduler, "cycle_momentum", False) and k > first:
            there = 1 - ratio * (1 - momenta[near])
            assert there.min() - 0.01 <= group["betas"][0] <= there.max() + 0.01
        scheduler.step()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_rescaled_scheduler_survives_its_state_dict(name):
    """Loaded into schedulers made like the old one, and into one that was rescaled, it gives the same rates."""
    make = SCHEDULERS[name]
    optimizer, scheduler, *_ = scheduled(make, 98)
    sl.torch.rescale(optimizer, 4, scheduler=scheduler, interval="step")
    states = pickle.loads(pickle.dumps((optimizer.state_dict(), scheduler.state_dict())))
    other, again, *_ = scheduled(make, 0)
    if type(scheduler) is not type(again) or "Lambda" in name or "Multiplicative" in name:
        sl.torch.rescale(other, 4, scheduler=again, interval="step")  # its functions are not in a state dict
    other.load_state_dict(states[0])
    again.load_state_dict(states[1])
    for _ in range(40):
        scheduler.step()
        again.step()
        assert other.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])


def test_two_changes_of_the_batch_size_are_one():
    optimizer, scheduler, *_ = scheduled(SCHEDULERS["LambdaLR"], 100)
    once, other, *_ = scheduled(SCHEDULERS["LambdaLR"], 100)
    sl.torch.rescale(optimizer, 2, scheduler=scheduler, interval="step")
    sl.torch.rescale(optimizer, 2, scheduler=scheduler, interval="step")
    sl.torch.rescale(once, 4, scheduler=other, interval="step")
    for _ in range(20):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(once.param_groups[0]["lr"])
        scheduler.step()
        other.step()


def test_a_learning_rate_of_0_in_warm_up_stays_0_and_its_scheduler_goes_on():
    optimizer, scheduler, *_ = scheduled(SCHEDULERS["LambdaLR"])
    optimizer.param_groups[0]["lr_scale"] = 0.5  # timm's factor of a layer
    account = sl.torch.rescale(optimizer, 4, scheduler=scheduler, interval="step")
    group = optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["lr_scale"]) == (0.0, pytest.approx(0.2), 0.5)
    assert any("stays 0" in text for text in account.assumed)
    scheduler.step()
    assert group["lr"] == pytest.approx(0.2 * 4 / 50)
    by_hand = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], lr=0.0)
    sl.torch.rescale(by_hand, 4, momentum="fixed")
    assert by_hand.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_tensor_learning_rate_of_any_shape_and_its_scheduler(shape):
    optimizer, scheduler, *_ = scheduled(SCHEDULERS["CosineAnnealingLR"], 50, lr=torch.full(shape, 0.1))
    rate = optimizer.param_groups[0]["lr"]
    value = float(rate)
    sl.torch.rescale(optimizer, 2, scheduler=scheduler, interval="step")
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(2**0.5 * value)
    scheduler.step()
    assert float(rate) < 2**0.5 * value


def test_reduce_on_plateau_counts_samples_or_epochs():
    make = lambda o: schedules.ReduceLROnPlateau(o, patience=20, cooldown=3, min_lr=1e-3)  # noqa: E731
    optimizer, scheduler, *_ = scheduled(make)
    for _ in range(9):
        scheduler.step(1.0)
    sl.torch.rescale(optimizer, 4, scheduler=scheduler, interval="step")
    found = scheduler.patience, scheduler.num_bad_epochs, scheduler.cooldown, scheduler.min_lrs
    assert found == (5, 2, 1, [2e-3])
    optimizer, scheduler, *_ = scheduled(make)
    sl.torch.rescale(optimizer, 4, scheduler=scheduler, interval="epoch")
    assert (scheduler.patience, scheduler.min_lrs, optimizer.param_groups[0]["lr"]) == (20, [2e-3], pytest.approx(0.2))


def test_a_scheduler_that_is_called_once_per_epoch_is_told_from_the_step_counts():
    optimizer = trained("AdamW", lr=1e-3, betas=(0.9, 0.99))
    scheduler = schedules.StepLR(optimizer, 30)
    for _ in range(5):
        scheduler.step()
    before = snapshot(optimizer, scheduler)
    with pytest.raises(ValueError, match="it was called 5 times, and the optimizer has made 30 steps"):
        sl.torch.rescale(optimizer, 4, scheduler=scheduler)
    assert snapshot(optimizer, scheduler) == before
    sl.torch.rescale(optimizer, 4, scheduler=scheduler, interval="epoch")
    assert (scheduler.step_size, scheduler.last_epoch, scheduler.base_lrs) == (30, 5, [2e-3, 2e-3])


class Wrapper:
    """As accelerate and Lightning wrap: the real one is an attribute."""

    def __init__(self, **held):
        vars(self).update(held)


def test_wrappers_of_known_libraries_are_removed_and_named():
    for module, key in (("accelerate.optimizer", "optimizer"), ("lightning.pytorch.core.optimizer", "_optimizer")):
        kind = type("Wrapped", (Wrapper,), {"__module__": module})
        optimizer, scheduler, *_ = scheduled(SCHEDULERS["LinearLR"], 8)
        account = sl.torch.rescale(kind(**{key: optimizer}), 4, scheduler=kind(scheduler=scheduler), interval="step")
        assert (account.optimizer, account.scheduler) == (optimizer, scheduler)
        assert "optimizer: the wrapper Wrapped was removed; AdamW in it is changed." in account.assumed
        assert scheduler.last_epoch == 2
    with pytest.raises(TypeError, match=r"got .*\.Wrapper"):
        sl.torch.rescale(Wrapper(optimizer=optimizer), 4)  # what its step does is unknown


@pytest.mark.slow
def test_the_wrappers_of_accelerate_itself_and_its_folder(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    optimizer, scheduler, *_ = scheduled(SCHEDULERS["LinearLR"], 8)
    accelerator = accelerate.Accelerator(cpu=True)
    wrapped = accelerator.prepare(optimizer, scheduler)
    accelerator.save_state(str(tmp_path / "old"))
    sl.torch.rescale_checkpoint(tmp_path / "old", 4, tmp_path / "new", interval="step")
    assert {p.name for p in (tmp_path / "new").iterdir()} == {p.name for p in (tmp_path / "old").iterdir()}
    account = sl.torch.rescale(wrapped[0], 4, scheduler=wrapped[1], interval="step")
    assert account.optimizer is optimizer
    assert account.scheduler.last_epoch == 2
    assert same(torch.load(tmp_path / "new/scheduler.bin"), account.scheduler.state_dict())


class Halving(schedules.LRScheduler):
    def get_lr(self):
        return [rate / 2 for rate in self.base_lrs]


REFUSED = {
    "unknown scheduler": (Halving, {}, TypeError, "Halving, whose function of the step is not known"),
    "one eta_min": (
        lambda o: schedules.CosineAnnealingLR(o, 50, 1e-5),
        {},
        ValueError,
        "eta_min = 1e-05 is one learning rate for all parameter groups",
    ),
    "a cycle of an undamped momentum": (
        lambda o: schedules.OneCycleLR(o, 0.1, total_steps=50),
        {"momentum": "half-life"},
        ValueError,
        "the factor of lr would change with it",
    ),
    "a cycle that leaves [0, 1)": (
        lambda o: schedules.OneCycleLR(o, 0.1, total_steps=50, base_momentum=0.5),
        {},
        ValueError,
        "batch_ratio: got 4",
    ),
    "an unknown interval": (
        lambda o: schedules.StepLR(o, 5),
        {"interval": "batch"},
        ValueError,
        "interval: got 'batch'",
    ),
    "a slow StepLR": (lambda o: schedules.StepLR(o, 5, 0.9999), {}, ValueError, "has no whole step_size"),
}


@pytest.mark.parametrize(("make", "options", "kind", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_scheduler_that_cannot_be_rescaled_is_refused_and_nothing_is_changed(make, options, kind, message):
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    groups = [{"params": parameters[:1], "momentum": 0.9}, {"params": parameters[1:], "momentum": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for p in parameters:
        p.grad = torch.ones(2)
    optimizer.step()
    scheduler = make(optimizer)
    before = snapshot(optimizer, scheduler)
    with pytest.raises(kind, match=message):
        sl.torch.rescale(optimizer, 4, scheduler=scheduler, **{"interval": "step", **options})
    assert snapshot(optimizer, scheduler) == before


def test_the_scheduler_of_another_optimizer_or_of_fewer_groups_is_refused():
    optimizer, _, *_ = scheduled(SCHEDULERS["LinearLR"])
    _, scheduler, *_ = scheduled(SCHEDULERS["LinearLR"])
    with pytest.raises(ValueError, match="scheduler: it belongs to another optimizer"):
        sl.torch.rescale(optimizer, 4, scheduler=scheduler, interval="step")
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="it has 1 learning rates, but the optimizer has 2 parameter groups"):
        sl.torch.rescale(scheduler.optimizer, 4, scheduler=scheduler, interval="step")
