"""Gradient noise of PyTorch models, against gradients taken one by one."""

import numpy as np
import pytest

import sdelens as sl

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from sdelens.torch import watch  # noqa: E402

COUNT, SIZE = 24, 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    found[0].bias.requires_grad_(False)
    return found


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SIZE, 4, generator=generator) for _ in range(COUNT)]


def loss(model, batch):
    return ((model(batch[:, :3]) - batch[:, 3:]) ** 2).mean()


def one_by_one(model, batches):
    out = []
    for batch in batches:
        model.zero_grad()
        loss(model, batch).backward()
        named = model.named_parameters()
        out.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named if p.requires_grad})
    model.zero_grad()
    return sl.gradient_noise(out, batch_size=SIZE)


def same(a, b, columns=("gradient_square", "gradient_square_sem", "trace", "trace_sem")):
    for name in b.groups.index:  # a dict's leaves are sorted, a model's parameters are not
        np.testing.assert_allclose(
            a.groups.loc[name, list(columns)].astype(float), b.groups.loc[name, list(columns)].astype(float), rtol=2e-4
        )


@pytest.mark.parametrize("accumulate", [1, 6, 24])
def test_moments_of_micro_batches(model, batches, accumulate):
    with watch(model, batch_size=SIZE, scale=1 / accumulate) as noise:
        for i, batch in enumerate(batches):
            if i % accumulate == 0:
                model.zero_grad()
            (loss(model, batch) / accumulate).backward()
    found, want = noise.result(), one_by_one(model, batches)
    same(found, want)
    assert noise.count == found.count == COUNT
    np.testing.assert_allclose(found.variance["0.weight"], want.variance["0.weight"], rtol=1e-3)
    assert found.tails["2.weight"].kappa == pytest.approx(want.tails["2.weight"].kappa, abs=0.05)
    assert "0.bias" not in found.names


def test_sums_of_one_window_are_those_of_moments(model, batches):
    with watch(model, batch_size=SIZE, keep="sums") as noise:
        for batch in batches:
            loss(model, batch).backward()
    found = noise.result()
    same(found, one_by_one(model, batches))
    assert not found.tails
    with pytest.raises(ValueError, match="moments"):
        found.phases()
    assert "noise scale" in str(found)


def test_sums_over_windows_while_the_optimizer_steps():
    # g = A(x − x*) + noise, whose Σ does not depend on x: tr Σ over 60 windows of 4 within 4.5 standard errors, and
    # ‖∇f‖² of the mean over the path.
    torch.manual_seed(2)
    model = nn.Linear(20, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    generator, path = torch.Generator().manual_seed(3), []
    with watch(model, batch_size=2, scale=0.25, keep="sums") as noise:
        for _ in range(60):
            optimizer.zero_grad(set_to_none=False)
            path.append(float((model.weight.detach() ** 2).sum()))
            for _ in range(4):
                z = torch.randn(1, 20, generator=generator)
                (0.25 * (0.5 * (model.weight**2).sum() + (model.weight * z).sum())).backward()
            optimizer.step()
    row = noise.result().groups.loc["all"]
    assert abs(row.trace - 40) < 4.5 * row.trace_sem
    assert abs(row.gradient_square - np.mean(path)) < 4.5 * row.gradient_square_sem
    assert row.gradient_square_sem < 0.1 * row.trace


def test_shared_and_unreached_parameters():
    torch.manual_seed(4)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 1), nn.Linear(3, 1)
            self.tied = self.left

        def forward(self, x, which):
            return self.left(x) + self.tied(x) if which else self.right(x)

    def run(**options):
        with watch(model, batch_size=1, **options) as noise:
            for i, x in enumerate(data):
                model(x, i % 3 > 0).sum().backward()
        model.zero_grad()
        return noise.result()

    model, data = Branches(), torch.randn(30, 3)
    found = run()
    assert [n for n in found.names if n != "all"] == ["left.weight", "left.bias", "right.weight", "right.bias"]
    each = torch.where(torch.arange(30)[:, None] % 3 > 0, 2 * data, 0.0).numpy()
    np.testing.assert_allclose(found.variance["left.weight"][0], each.var(axis=0, ddof=1), rtol=1e-4)
    same(run(keep="sums"), found)


def test_unequal_batches_and_loss_scaling(model, batches):
    sizes = [1 + i % SIZE for i in range(COUNT)]
    with watch(model, batch_size=1, scale=lambda: 512.0) as noise:
        for batch, size in zip(batches, sizes, strict=True):
            noise.batch_size = size
            (512.0 * loss(model, batch[:size])).backward()
    own = []
    for batch, size in zip(batches, sizes, strict=True):
        model.zero_grad()
        loss(model, batch[:size]).backward()
        own.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    same(noise.result(), sl.gradient_noise(own, batch_size=sizes))


def test_hooks_leave_and_change_nothing(model, batches):
    plain = one_by_one(model, batches[:2])
    model.zero_grad()
    with watch(model, batch_size=SIZE) as noise:
        loss(model, batches[0]).backward()
        loss(model, batches[1]).backward()
    seen = model[0].weight.grad.clone()
    model.zero_grad()
    (loss(model, batches[0]) + loss(model, batches[1])).backward()
    torch.testing.assert_close(seen, model[0].weight.grad)
    assert noise.result().count == plain.count == 2  # what came after the context is not counted


def test_processes_merge(model, batches):
    parts = []
    for half in (batches[:10], batches[10:]):
        with watch(model, batch_size=SIZE, tails=False) as noise:
            for batch in half:
                loss(model, batch).backward()
        parts.append(noise.result())
    merged, want = parts[0].merge(parts[1]), one_by_one(model, batches)
    same(merged, want, ("gradient_square", "trace"))


def test_bad_use_is_named(model, batches):
    sparse = nn.Embedding(5, 2, sparse=True)
    with pytest.raises(TypeError, match="weight: got a sparse gradient"), watch(sparse, batch_size=1):
        sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"nn\.Module"), watch([1], batch_size=1):
        pass
    with pytest.raises(ValueError, match="requires a gradient"), watch(nn.Tanh(), batch_size=1):
        pass
    with pytest.raises(ValueError, match="keep"), watch(model, batch_size=1, keep="all"):
        pass
    with watch(model, batch_size=SIZE) as noise:
        loss(model, batches[0]).backward()
        with pytest.raises(ValueError, match="two or more"):
            noise.result()
        (loss(model, batches[1]) * float("inf")).backward()
    with pytest.raises(ValueError, match="not finite"):
        noise.result()
    with watch(model, batch_size=SIZE, keep="sums") as noise:
        for batch in batches[:3]:
            model.zero_grad()
            loss(model, batch).backward()
    with pytest.raises(ValueError, match="accumulate two or more"):
        noise.result()


def test_tensors_as_gradients(model, batches):
    half = [{"w": torch.randn(3).bfloat16()} for _ in range(5)]
    assert sl.gradient_noise(half, tails=False).count == 5
    with pytest.raises(TypeError, match="sparse"):
        sl.gradient_noise([torch.eye(3).to_sparse()] * 2)
