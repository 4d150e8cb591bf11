"""A user's training function at several batch sizes from one checkpoint."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

import sdelens as sl
from sdelens.results.paired import change, on_grid, seeds_needed
from sdelens.scaling import branch
from tests.checks import assert_shown_well

LR, SIZE, COORDINATES = 0.2, 4, 2000
SGD = {"optimizer": "sgd", "lr": LR}
SURE = 0.999
"""Two-sided: a limit misses the exact value in one of 1000 runs."""


def train(x, run):
    """SGD on |x|²/2 over 2000 coordinates with noise of variance 1/B; the mean loss per coordinate."""
    rng, losses = np.random.default_rng(1000 * run.seed + run.batch_size), []
    for _ in range(run.steps):
        losses.append(np.mean(x**2) / 2)
        x = x - run.optimizer["lr"] * (x + rng.normal(size=x.size) / run.batch_size**0.5)
    return losses


def rest(ratio):
    """Exact mean loss at rest, ½ η²s/(1 − (1 − η)²) with s = 1/(δB) and δη: ½ (η/B)/(2 − δη)."""
    return LR / SIZE / (2 - ratio * LR) / 2


@pytest.fixture(scope="module")
def at_rest():
    x = np.random.default_rng(5).normal(size=COORDINATES) * math.sqrt(2 * rest(1))
    return branch(
        train,
        x,
        (2, 4, 10),
        optimizer=SGD,
        batch_size=SIZE,
        samples=SIZE * 600,
        confidence=SURE,
        tolerance=0.3,
        minimum=0.0,
        seeds=4,
    )


def test_limits_contain_the_exact_change(at_rest):
    """Of the stationary law: at rest with lr 0.2, the losses at × 2 and × 4 are 1.125 and 1.5 times as high."""
    assert list(at_rest.table.index) == [("linear", 2.0), ("linear", 4.0), ("linear", 10.0)]
    for ratio in (2, 4):
        row = at_rest.table.loc[("linear", ratio)]
        exact = rest(ratio) / rest(1) - 1
        assert row.relative_lower < exact < row.relative_upper
        assert row.difference_lower < rest(ratio) - rest(1) < row.difference_upper
        assert row.relative_upper - row.relative_lower < 0.2
        assert row.steps == 600 / ratio
    assert at_rest.table.verdict.tolist() == ["within", "beyond", "beyond"]
    assert at_rest.largest_ratio == 2
    # The curves start at the rest of × 1 and move to their own within 1/(δη) steps: the error is close to the change.
    assert at_rest.table.error[("linear", 4.0)] == pytest.approx(0.5, abs=0.05)


def test_result_is_written_and_drawn(at_rest, tmp_path):
    assert "Up to 2 times the batch size (8)" in str(at_rest)
    assert_shown_well(at_rest)
    found = json.loads(json.dumps(at_rest.to_dict(), allow_nan=False))
    assert found["largest_ratio"] == 2
    assert len(found["curves"]) == 16
    assert found["table"][0]["predicted"] is None
    figure = at_rest.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
    assert figure.axes[1].get_xlabel() == "samples since the checkpoint"


def small(train=train, ratios=(2,), x=None, **options):
    given = {"optimizer": SGD, "batch_size": SIZE, "samples": SIZE * 40, "seeds": 3, **options}
    return branch(train, np.ones(20) if x is None else x, ratios, **given)


def test_what_few_seeds_cannot_tell_is_said():
    """On 20 coordinates the loss of three seeds scatters by a third, and 12.5 % is not told from 11 %."""
    found = small(tolerance=0.11, x=np.zeros(20), samples=SIZE * 100, minimum=0.0)
    assert found.table.verdict.tolist() == ["cannot tell"]
    assert math.isnan(found.largest_ratio)
    assert found.table.seeds_needed.iloc[0] > 3
    assert "cannot tell" in found.verdict()
    assert found.to_dict()["largest_ratio"] is None
    one = small(seeds=1)
    assert one.table.verdict.tolist() == ["cannot tell"]
    assert "give two or more seeds" in one.verdict()


@pytest.mark.parametrize("how", ["raises", "diverges", "is wrong"])
def test_a_failure_at_one_ratio_does_not_lose_the_others(how):
    def fails(x, run):
        losses = train(x, run)
        if run.ratio == 4 and run.seed == 1:
            if how == "raises":
                raise RuntimeError("out of memory")
            return [*losses[:-1], math.inf] if how == "diverges" else losses[:3]
        return losses

    with pytest.warns(UserWarning, match="batch × 4, linear, seed 1 failed"):
        found = small(fails, (2, 4), tolerance=0.9)
    assert found.table.verdict[("linear", 4.0)] == "failed"
    assert np.isfinite(found.table.relative_upper[("linear", 2.0)])
    reason = {"raises": "out of memory", "diverges": "not finite from 144 samples on", "is wrong": "shape"}[how]
    assert reason in found.table.reason[("linear", 4.0)]
    assert "1 of 3 runs" in str(found)
    assert np.isnan(found.table.loss[("linear", 4.0)])
    found.plot()


def test_a_failure_of_the_reference_is_raised():
    def fails(x, run):
        if run.ratio == 1:
            raise KeyError("weights")
        return train(x, run)

    with pytest.raises(KeyError, match="weights"):
        small(fails)
    with pytest.raises(ValueError, match="not finite after 0 samples"):
        small(lambda x, run: np.full(run.steps, np.nan))


def test_a_ratio_that_the_rule_refuses_is_named():
    adam = {"optimizer": "adamw", "lr": 1e-2, "betas": (0.9, 0.95)}
    rules = {"full": {}, "lr alone": {"rule": "sqrt-lr"}}
    found = small(ratios=(2, 16), optimizer=adam, rules=rules, samples=SIZE * 64, tolerance=0.9)
    assert found.table.verdict[("full", 16.0)] == "refused"
    assert "b1" in found.table.reason[("full", 16.0)]
    assert found.table.verdict[("lr alone", 16.0)] != "refused"
    with pytest.raises(ValueError, match="ratios: no rule can be applied"):
        small(ratios=(16,), optimizer=adam, samples=SIZE * 64)


def test_pairs_of_samples_and_loss_at_different_places():
    """A straight line has the same means over bins wherever it is recorded, and twice the line is 100 % above."""

    def line(_, run):
        x = np.linspace(0, run.steps * run.batch_size, 5 if run.ratio == 1 else 9)
        return np.stack([x, (100 - x / 10) * (1 if run.ratio == 1 else 2)], axis=1)

    found = small(line, minimum=0.0)
    assert found.table.relative.iloc[0] == pytest.approx(1)
    assert found.table.error.iloc[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(100, 1.0), (150, 1.0), (160, 1.0)], r"between 100 and 160 of 160 samples; the first must be"),
        ([(0, 1.0), (10, 1.0), (10, 1.0)], "must be 0 or more and increase"),
        ([(0, 1.0), (160, 1.0)], r"an array of shape \(2, 2\); return one loss for each of the 40 steps"),
        ("losses", "returned str"),
    ],
)
def test_what_a_training_function_may_not_return(pairs, message):
    with pytest.raises(ValueError, match=message):
        small(lambda x, run: pairs)


def test_changes_are_relative_to_the_decrease_of_the_reference():
    """A loss that falls by 2 on a level of 100, and by 1 at the other batch: half of the progress is lost."""

    def line(_, run):
        x = np.linspace(0, run.steps * run.batch_size, 41)
        return np.stack([x, 100 - (2 if run.ratio == 1 else 1) * x / x[-1]], axis=1)

    found = small(line)
    assert found.table.relative.iloc[0] == pytest.approx(0.5, abs=0.02)  # the decrease begins in the first bin
    assert found.table.verdict.tolist() == ["beyond"]
    assert "higher by more than 5 % of its decrease" in str(found)
    flat = small(lambda _, run: 1 + np.random.default_rng(run.seed).normal(size=run.steps))
    assert flat.table.verdict.tolist() == ["cannot tell"]  # it does not decrease


def test_prediction_stands_beside():
    foretold = SimpleNamespace(expected_error=lambda r: 0.01 * r, error_range=lambda r: (0.0, 0.1), tolerance=0.05)
    foretold.largest_ratio_limits = (1.5, np.inf)
    adam = {"optimizer": "adamw", "lr": 1e-2, "betas": (0.9, 0.95)}
    found = small(optimizer=adam, predicted=foretold, rules={"full": {}, "none": {"rule": "none"}})
    assert found.table.predicted[("full", 2.0)] == pytest.approx(0.02)
    assert np.isnan(found.table.predicted[("none", 2.0)])  # it is that of the square-root rule
    assert "Predicted, within 5 % of the curve: the square-root rule holds up to 1.5." in str(found)


def test_an_interrupted_comparison_continues(tmp_path):
    calls = []

    def killed(x, run):
        calls.append((run.ratio, run.seed))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return train(x, run)

    with pytest.raises(KeyboardInterrupt):
        small(killed, folder=tmp_path)
    calls[4:] = [None] * 10
    found = small(killed, folder=tmp_path)
    assert calls[14:] == [(2, 1), (2, 2)]  # the one that was interrupted, and the last
    more = small(killed, folder=tmp_path, seeds=4)
    assert len(calls) == 14 + 2 + 2
    whole = small(seeds=4)
    np.testing.assert_allclose(more.table.loss, whole.table.loss)
    np.testing.assert_allclose(found.table.loss, small().table.loss)


def test_another_comparison_is_not_continued(tmp_path):
    small(folder=tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another comparison: its hyperparameters is \{'lr': 0.2"):
        small(folder=tmp_path, optimizer={**SGD, "lr": 0.1})
    with pytest.raises(ValueError, match="its samples is 160, not 400"):
        small(folder=tmp_path, samples=400)
    next(tmp_path.glob("*.json")).write_text("[]")
    with pytest.raises(ValueError, match=r"is not a run of sdelens.scaling.branch"):
        small(folder=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratios": [1]}, "ratios: got"),
        ({"ratios": [1.1]}, r"1.1 × 4 is not a whole batch size"),
        ({"ratios": [-2]}, "batch_ratio: got -2"),
        ({"ratios": [32]}, "samples: with 160 samples a run has only 1 steps"),
        ({"seeds": []}, "seeds: got"),
        ({"seeds": [1, 1]}, "seeds: got"),
        ({"tolerance": 5}, "tolerance: got 5; it must lie between 0 and 1"),
        ({"rules": "squareroot"}, "rule: got 'squareroot'"),
        ({"rules": {"base": {}}}, "rules: got the label 'base'"),
        ({"rules": {"a": {"steps": 3}}}, r"rules\['a'\]"),
        ({"predicted": 4}, "predicted: got int"),
        ({"optimizer": SimpleNamespace(param_groups=[])}, "optimizer: got a live SimpleNamespace"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        small(**given)


def test_limits_of_changes_cover_as_often_as_stated():
    """Exact for normal losses: of 4000 repetitions with three seeds 95 % contain it, within 4.5 standard errors."""
    rng, count = np.random.default_rng(1), 4000
    common = rng.normal(size=(count, 3))
    a = 2.2 + 0.2 * common + 0.1 * rng.normal(size=(count, 3))
    b = 2.0 + 0.2 * common + 0.1 * rng.normal(size=(count, 3))
    found = [change(x, y, y) for x, y in zip(a, b, strict=True)]
    for name, exact in (("difference", 0.2), ("relative", 0.1)):
        low, high = (np.array([getattr(f, f"{name}_{side}") for f in found]) for side in ("lower", "upper"))
        assert abs(np.mean((low < exact) & (exact < high)) - 0.95) < 4.5 * math.sqrt(0.95 * 0.05 / count)


def test_seeds_needed_halve_the_limits_with_four_times_as_many():
    """Half-width t s/√n: at s = 0.1 and a distance of 0.02, n ≈ (1.98 · 5)² ≈ 99."""
    found = change(np.array([1.0, 1.2]), np.ones(2), np.ones(2))._replace(relative=0.03, deviation=0.1)
    assert seeds_needed(found, 0.05) == pytest.approx(99, abs=1)
    assert seeds_needed(found._replace(relative=0.05), 0.05) == math.inf
    assert math.isnan(seeds_needed(found._replace(deviation=math.nan), 0.05))


def test_means_over_bins_are_exact():
    edges, means = on_grid([(np.array([0.0, 1.0, 4.0]), np.array([0.0, 1.0, 1.0])), (np.array([0.0, 4.0]), np.ones(2))])
    np.testing.assert_allclose(edges, [0, 2, 4])
    np.testing.assert_allclose(means, [[0.75, 1], [1, 1]])


@pytest.mark.slow
def test_a_live_pytorch_optimizer():
    """A small network under AdamW, rescaled in place: at × 2, a fifth of the way to its rest, within 20 %."""
    torch = pytest.importorskip("torch")
    from sdelens.torch import rescale

    torch.set_num_threads(1)
    data = torch.randn(4096, 10, generator=torch.Generator().manual_seed(0))
    target = torch.tanh(data @ torch.linspace(-1, 1, 10))[:, None]
    adam = {"lr": 2e-3, "betas": (0.95, 0.99), "weight_decay": 0.1}

    def built():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        return model, torch.optim.AdamW(model.parameters(), **adam)

    def train(checkpoint, run):
        model, optimizer = built()
        if checkpoint is not None:
            model.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
        new = rescale(optimizer, run.ratio, **run.options)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(run.optimizer["lr"])
        assert new.rule == run.rescaled.rule
        generator, losses = torch.Generator().manual_seed(run.seed), []
        for step in range(run.steps):
            seen = step * run.batch_size
            if seen % 64 == 0:  # the variance of the noise on the targets, ¼, is the infimum
                with torch.no_grad():
                    losses.append((seen, 0.25 + torch.nn.functional.mse_loss(model(data), target).item()))
            rows = torch.randint(len(data), (run.batch_size,), generator=generator)
            noise = 0.5 * torch.randn((run.batch_size, 1), generator=generator)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(data[rows]), target[rows] + noise).backward()
            optimizer.step()
        train.last = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        return losses

    first = SimpleNamespace(ratio=1, options={}, seed=9, steps=300, batch_size=8, optimizer=adam)
    first.rescaled = sl.scaling.rescale({"optimizer": "adamw", **adam}, 1)
    train(None, first)
    checkpoint = train.last
    found = branch(
        train,
        checkpoint,
        (2,),
        optimizer={"optimizer": "adamw", **adam},
        batch_size=8,
        samples=8 * 400,
        tolerance=0.2,
        minimum=0.25,
    )
    assert found.table.verdict.tolist() == ["within"]
    assert found.table.relative_upper.iloc[0] < 0.2
    assert (found.of("base", 1.0)[0].samples == found.of("sqrt", 2.0)[0].samples).all()
