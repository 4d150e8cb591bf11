"""Gradient noise of PyTorch models, against gradients taken one by one."""

import contextlib
import copy
import pickle

import numpy as np
import pytest

import sdelens as sl

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from sdelens.diagnosis.logged import KEYS  # noqa: E402
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


def train(model, batches, size=4, overflow=(), reset_to_zero=False, **options):
    """A training loop of `size` micro-batches a step with loss scaling; the watch after it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scale = [512.0]
    with watch(model, batch_size=SIZE, scale=lambda: scale[0] / size, **options) as noise:
        for i, batch in enumerate(batches):
            value = loss(model, batch) * scale[0] / size
            (value * float("inf") if i in overflow else value).backward()
            if i % size == size - 1:
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                if all(g.isfinite().all() for g in grads):
                    torch._foreach_div_(grads, scale[0])
                    optimizer.step()
                else:
                    scale[0] /= 2
                optimizer.zero_grad(set_to_none=not reset_to_zero)
    return noise


@pytest.mark.parametrize("reset_to_zero", [False, True])
def test_moments_while_the_optimizer_steps_are_those_of_sums(model, batches, reset_to_zero):
    state = copy.deepcopy(model.state_dict())
    sums = train(model, batches, keep="sums", reset_to_zero=reset_to_zero).result()
    model.load_state_dict(state)
    moments = train(model, batches, reset_to_zero=reset_to_zero).result()
    same(moments, sums)
    assert sums.step_batch_size == moments.step_batch_size == 4 * SIZE
    assert moments.trace == pytest.approx(sum(float(v.sum()) for v in moments.variance.values()), rel=1e-4)
    assert not moments.is_at_one_point
    assert "parameters changed" in moments.noise_scale_reason(norm="l1")
    assert "parameters changed" in moments.tails["all"].reason
    with pytest.raises(ValueError, match="phases: the parameters changed"):
        moments.phases()
    assert "noise scale" in str(moments)


@pytest.mark.parametrize("reset_to_zero", [False, True])
@pytest.mark.parametrize("keep", ["sums", "moments"])
def test_an_overflow_is_left_out_with_its_window(model, batches, keep, reset_to_zero):
    # Micro-batch 9 overflows; with sums its window, 8 to 11, is left out, and the parameters stay there until 16.
    found = train(model, batches, keep=keep, overflow=(9,), reset_to_zero=reset_to_zero)
    assert found.skipped == (4 if keep == "sums" else 1)
    noise = found.result()
    assert noise.count == COUNT - found.skipped
    assert np.isfinite([noise.trace, noise.gradient_square]).all()


def test_parameters_that_change_after_every_backward_pass_are_named(model, batches):
    noise = train(model, batches[:5], size=1)
    with pytest.raises(ValueError, match="changed after every backward pass"):
        noise.result()
    assert all(np.isnan(v) for k, v in noise.log().items() if k != "micro_batches")
    noise = train(model, batches[:8], keep="sums", overflow=(1, 5))
    with pytest.raises(ValueError, match="not finite"):
        noise.result()


def test_a_window_whose_beginning_was_not_seen_is_left_out(model, batches):
    loss(model, batches[0]).backward()
    with watch(model, batch_size=SIZE, keep="sums") as noise:
        for batch in batches[1:4]:
            loss(model, batch).backward()
        with pytest.raises(ValueError, match=r"p\.grad was not empty"):
            noise.result()
        model.zero_grad()
        for batch in batches[4:7]:
            loss(model, batch).backward()
    assert noise.result().count == 3
    assert noise.skipped == 3


def test_gradients_without_common_coordinates_stay_in_one_window():
    # gᵀs is 0 for one-hot gradients, but p.grad is not.
    model = nn.Linear(6, 1, bias=False)
    with watch(model, batch_size=1, keep="sums") as noise:
        for row in torch.eye(6):
            model(row).sum().backward()
    row = noise.result().groups.loc["all"]
    assert (row.gradient_square, row.trace) == pytest.approx((0, 1))


def test_reset_and_moving_averages(model, batches):
    state = copy.deepcopy(model.state_dict())
    train(model, batches[:16], keep="sums")
    later = train(model, batches[16:], keep="sums").result()
    model.load_state_dict(state)
    moving = train(model, batches, keep="sums", last=2)  # a second optimizer begins at batch 16 above, with m = v = 0
    assert moving.count == COUNT
    assert moving.result().count == later.count == 8
    with watch(model, batch_size=SIZE, keep="sums") as noise:
        for batch in batches[:3]:
            loss(model, batch).backward()
        noise.reset()
        model.zero_grad()
        for batch in batches[:6]:
            loss(model, batch).backward()
    same(noise.result(), one_by_one(model, batches[:6]))


def test_sums_of_the_host_are_those_of_the_device(model, batches, monkeypatch):
    from sdelens.torch import _watch_sums

    state = copy.deepcopy(model.state_dict())
    want = train(model, batches, size=2, keep="sums").result()
    monkeypatch.setattr(_watch_sums, "_PENDING", 3)
    model.load_state_dict(state)
    same(train(model, batches, size=2, keep="sums").result(), want)


@pytest.mark.parametrize("keep", ["sums", "moments"])
def test_numbers_for_a_logger(model, batches, keep):
    with watch(model, batch_size=SIZE, keep=keep, tails=False, step_batch_size=96) as noise:
        assert noise.log()["micro_batches"] == 0
        for batch in batches:
            loss(model, 2 + batch).backward()
    told, found = noise.log("noise/"), noise.result()
    assert list(told) == ["noise/" + key for key in KEYS]
    assert all(type(v) is float for v in told.values())
    want = (found.snr(96), *found.snr_limits(96), *found.noise_scale_limits(), found.trace, float(COUNT))
    names = ("snr", "snr_lower", "snr_upper", "noise_scale_lower", "noise_scale_upper", "noise_trace", "micro_batches")
    np.testing.assert_equal([told["noise/" + name] for name in names], want)
    assert np.isnan(told["noise/noise_scale_l1_lower"]) == (keep == "sums")
    assert told["noise/gradient_norm"] ** 2 == pytest.approx(found.gradient_square)


def test_noise_scale_of_the_matrices_of_muon(model, batches):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    optimizer = torch.optim.SGD(matrices, lr=0.1)  # in the place of Muon, which older PyTorch does not have
    with watch(model, batch_size=SIZE, matrices=optimizer, tails=False) as noise:
        for batch in batches:
            loss(model, 2 + batch).backward()
    found, names = noise.result(), [n for n, p in model.named_parameters() if p.ndim == 2]
    known = found.groups.noise_scale_nuclear_lower.dropna()
    assert list(known.index) == [*names, "all"]
    assert noise.log()["noise_scale_nuclear_lower"] == known["all"]
    with pytest.raises(ValueError, match="keep='moments'"), watch(model, batch_size=2, matrices=True, keep="sums"):
        pass
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1)
    with pytest.raises(ValueError, match="none of the watched"), watch(model, batch_size=2, matrices=other):
        pass


def test_complex_parameters_are_pairs():
    # g = N + i(5 + N): tr Σ = 2, ‖∇f‖² = 25; within 4.5 standard errors of 400 gradients.
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))

    generator = torch.Generator().manual_seed(5)
    draws = torch.randn(400, 3, 2, generator=generator) + torch.tensor([0.0, 5.0])
    for keep in ("sums", "moments"):
        model = Complex()
        with watch(model, batch_size=1, keep=keep, tails=False) as noise:
            for draw in draws:
                (torch.view_as_real(model.weight) * draw).sum().backward()
        row = noise.result().groups.loc["all"]
        assert row["size"] == 6
        assert abs(row.trace - 6) < 4.5 * row.trace_sem
        assert abs(row.gradient_square - 75) < 4.5 * row.gradient_square_sem


def test_sums_merge_as_windows(model, batches):
    state = copy.deepcopy(model.state_dict())
    first = train(model, batches[:12], keep="sums").result()
    second = train(model, batches[12:], keep="sums").result()
    joined = first.merge(pickle.loads(pickle.dumps(second)))
    assert joined.trace == pytest.approx((first.trace + second.trace) / 2)
    assert joined.gradient_square == pytest.approx((first.gradient_square + second.gradient_square) / 2)
    assert joined.count == COUNT
    model.load_state_dict(state)
    moments = train(model, batches).result()
    with pytest.raises(ValueError, match="moments per coordinate"):
        first.merge(moments)
    with pytest.raises(ValueError, match="parameters changed"):
        moments.merge(moments)


PROCESSES, STEPS = 2, 12


def of_process(batches, rank, micro):
    """Micro-batches of every step of one of two processes."""
    return [batches[(PROCESSES * micro * t + rank * micro + i) % COUNT] for t in range(STEPS) for i in range(micro)]


def work(rank, path, state, batches):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=PROCESSES)
    found = [of_one_process(rank, state, batches, *case) for case in ((1, False), (3, True))]
    torch.save(found, f"{path}-{rank}")
    torch.distributed.destroy_process_group()


def of_one_process(rank, state, batches, micro, as_view):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    model.load_state_dict(state)
    wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=as_view)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(wrapped, batch_size=SIZE, scale=1 / micro, keep="sums") as noise:
        for i, batch in enumerate(of_process(batches, rank, micro)):
            end = i % micro == micro - 1
            with contextlib.nullcontext() if end else wrapped.no_sync():
                (loss(wrapped, batch) / micro).backward()
            if end:
                optimizer.step()
                optimizer.zero_grad(set_to_none=not as_view)
    with watch(wrapped, batch_size=SIZE, tails=False) as all_moments:
        for batch in batches[rank::PROCESSES]:
            loss(wrapped, batch).backward()
    return noise.result(), noise.gather(), all_moments.gather(), model.state_dict()


@pytest.mark.slow
def test_processes_see_the_noise_of_one(batches, tmp_path):
    torch.manual_seed(0)
    state = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).state_dict()
    torch.multiprocessing.spawn(work, (str(tmp_path / "join"), state, batches), nprocs=PROCESSES)
    found = [torch.load(tmp_path / f"join-{rank}", weights_only=False) for rank in range(PROCESSES)]
    for micro, *parts in zip((1, 3), *found, strict=True):
        compare_with_one_process(parts, state, batches, micro)


def compare_with_one_process(parts, state, batches, micro):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    each = [of_process(batches, rank, micro) for rank in range(PROCESSES)]
    with watch(model, batch_size=SIZE, scale=1 / (micro * PROCESSES), keep="sums") as noise:
        for t in range(STEPS):
            for own in each:
                for batch in own[micro * t : micro * (t + 1)]:
                    (loss(model, batch) / (micro * PROCESSES)).backward()
            optimizer.step()
            optimizer.zero_grad()
    one = noise.result()
    same(parts[0][1], one, ("gradient_square", "trace"))
    same(parts[0][1], parts[1][1])
    assert parts[0][1].step_batch_size == one.step_batch_size == SIZE * micro * PROCESSES
    low, high = parts[0][1].noise_scale_limits()
    assert low < one.noise_scale_limits()[1]
    assert high > one.noise_scale_limits()[0]
    mean = np.mean([parts[rank][0].trace for rank in range(PROCESSES)])
    assert mean == pytest.approx(one.trace, rel=1e-4)  # what each process knows alone, on average
    model.load_state_dict(parts[0][3])
    same(parts[1][2], one_by_one(model, batches), ("gradient_square", "trace"))


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
    with pytest.raises(RuntimeError, match="init_process_group"):
        noise.gather()
    with pytest.raises(ValueError, match="last: applies only"), watch(model, batch_size=1, last=3):
        pass
    with watch(model, batch_size=SIZE, keep="sums") as noise:
        loss(model, batches[0]).backward()
        noise.batch_size = 2
        with pytest.raises(ValueError, match="got 2 after 4"):
            loss(model, batches[1][:2]).backward()


def test_sharded_parameters_are_refused():
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Linear(3, 1)
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        with pytest.raises(TypeError, match="sharded"), watch(model, batch_size=1):
            pass
        alone = nn.Linear(3, 1)
        with watch(alone, batch_size=2, keep="sums") as noise:
            for row in torch.ones(4, 3):
                alone(row).sum().backward()
        assert noise.gather().count == 4
    finally:
        torch.distributed.destroy_process_group()


def test_tensors_as_gradients(model, batches):
    half = [{"w": torch.randn(3).bfloat16()} for _ in range(5)]
    assert sl.gradient_noise(half, tails=False).count == 5
    with pytest.raises(TypeError, match="sparse"):
        sl.gradient_noise([torch.eye(3).to_sparse()] * 2)
