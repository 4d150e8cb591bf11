"""Noise in training loops, with the real libraries, against the gradients of all examples."""

import json
import logging
import math

import numpy as np
import pytest

import sdelens as sl

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from sdelens.callbacks import NoiseMonitor  # noqa: E402

COUNT, SIZE, ACCUMULATE = 96, 4, 3
STEPS = 40
NAMES = {"noise_scale", "snr", "gradient_norm", "noise_trace", "micro_batches", "largest_ratio", "largest_batch"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Regression(nn.Module):
    """A linear regression on fixed data, as the Trainer of Hugging Face takes it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(10, 1)

    def forward(self, x, labels):
        return {"loss": nn.functional.mse_loss(self.layer(x)[:, 0], labels)}


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(COUNT, 10, generator=generator)
    return [
        {"x": row, "labels": y} for row, y in zip(x, x.sum(1) + torch.randn(COUNT, generator=generator), strict=True)
    ]


def batch_of(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def exact(data):
    """‖∇f‖ and tr Σ of one example, from the gradients of all examples at the start."""
    model, found = Regression(), []
    for row in data:
        model.zero_grad()
        model(**batch_of([row]))["loss"].backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).numpy().copy())
    found = np.array(found, float)
    return math.sqrt((found.mean(axis=0) ** 2).sum()), found.var(axis=0).sum()


def batches(data, seed=0):
    """Micro-batches with replacement."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield batch_of([data[int(i)] for i in torch.randint(COUNT, (SIZE,), generator=generator)])


def is_right(numbers, data, errors=4.5):
    """The norm and the trace are those of all examples, within standard errors of as many micro-batches.

    The parameters move by less than 1e-4, and ‖g‖² of a micro-batch has a relative standard deviation of at most 1.5.
    """
    norm, trace = exact(data)
    room = errors * 1.5 / math.sqrt(numbers["noise/micro_batches"])
    assert abs(numbers["noise/noise_trace"] / trace - 1) < room
    assert abs(numbers["noise/gradient_norm"] ** 2 / norm**2 - 1) < 2 * room
    assert numbers["noise/noise_scale_lower"] < trace / norm**2 < numbers["noise/noise_scale_upper"]
    assert numbers["noise/snr"] == pytest.approx(math.sqrt(SIZE * ACCUMULATE / numbers["noise/noise_scale"]))


def loop(data, accumulate=ACCUMULATE, steps=STEPS, optimizer=torch.optim.AdamW, **options):
    model, logs = Regression(), []
    own = optimizer(model.parameters(), lr=1e-6)
    given = {"batch_size": SIZE, "scale": 1 / accumulate, "every": 20, "log": lambda n, step: logs.append((step, n))}
    source = batches(data)
    with NoiseMonitor(model, own, **{**given, **options}) as monitor:
        for _ in range(steps):
            for _ in range(accumulate):
                (model(**next(source))["loss"] / accumulate).backward()
            own.step()
            own.zero_grad()
            monitor.step()
    return monitor, logs


def test_plain_loop(data, caplog):
    with caplog.at_level(logging.INFO, "sdelens"):
        monitor, logs = loop(data, steps=20)
    ((step, numbers),) = logs
    assert step == 20
    is_right(numbers, data)
    assert {f"noise/{name}" for name in NAMES} <= numbers.keys()
    assert all(math.isfinite(value) for value in numbers.values())
    last = monitor.last
    assert last.numbers["noise/micro_batches"] == 20 * ACCUMULATE
    assert last.diagnosis.verdict() in last.text
    assert last.advice.recommendation in last.text
    assert "step 20: " in caplog.text


def test_only_the_windows_before_a_measurement_are_watched(data):
    monitor, logs = loop(data, windows=5, steps=43, optimizer=torch.optim.SGD)
    assert [numbers["noise/micro_batches"] for _, numbers in logs] == [15, 15]
    assert monitor._watch is None
    assert all(not p._backward_hooks for p in monitor._model.parameters())


def test_one_micro_batch_per_step_cannot_be_told(data):
    monitor, logs = loop(data, accumulate=1)
    assert logs == []
    assert "Cannot tell the noise" in monitor.last.text
    assert "two or more micro-batches" in monitor.last.text
    assert monitor.last.numbers == {}


def test_without_an_optimizer_and_with_one_of_no_verdict(data):
    model = Regression()
    alone = NoiseMonitor(model, batch_size=SIZE, every=1, prefix="")
    for batch, _ in zip(batches(data), range(2), strict=False):
        model(**batch)["loss"].backward()
    found = alone.step()
    assert found.diagnosis is None
    assert found.numbers["micro_batches"] == 2
    assert "largest_ratio" not in found.numbers
    alone.close()
    sgd, _ = loop(data, steps=20, optimizer=torch.optim.SGD)
    assert math.isfinite(sgd.last.numbers["noise/noise_scale"])
    assert sgd.last.text


def test_what_cannot_be_told_does_not_end_the_run(data):
    monitor, logs = loop(data, options={"ratios": (-1,)})
    assert "Cannot tell: ratios" in monitor.last.text
    assert "noise/noise_scale" in logs[-1][1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"every": 0}, "every: got 0"),
        ({"windows": 0}, "windows: got 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"scale": -1}, "scale: got -1"),
    ],
)
def test_bad_arguments(data, given, message):
    with pytest.raises(ValueError, match=message):
        loop(data, **given)


@pytest.mark.slow
def test_hugging_face(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from sdelens.callbacks import HuggingFaceNoise

    def trainer(**options):
        given = {"gradient_accumulation_steps": ACCUMULATE, "max_steps": STEPS, **options}
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=SIZE,
            learning_rate=1e-6,
            logging_steps=10,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            **given,
        )
        found = transformers.Trainer(Regression(), arguments, train_dataset=data)
        found.noise = HuggingFaceNoise(found, every=20, windows=20)
        found.add_callback(found.noise)
        return found

    one = trainer(max_grad_norm=0.0)
    one.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # the factor of mixed precision
    one.train()
    assert one.accelerator.scaler.get_scale() == 1024
    rows = [row for row in one.state.log_history if "noise/micro_batches" in row]
    assert [row["step"] for row in rows] == [20, 40]
    own = [row["step"] for row in one.state.log_history if "loss" in row]
    assert own == [10, 20, 30, 40]  # its own logs are there as before
    assert {f"noise/{name}" for name in NAMES} <= rows[-1].keys()
    is_right(rows[-1], data, errors=3)  # without replacement within an epoch, which makes it more exact
    json.dumps(one.state.log_history, allow_nan=False)
    assert one.noise.history[-1].diagnosis.verdict() in one.noise.history[-1].text
    assert all(not p._backward_hooks for p in one.model.parameters())
    with pytest.raises(ValueError, match="gradient_accumulation_steps: got 1"):
        trainer(gradient_accumulation_steps=1).train()


@pytest.mark.slow
def test_hugging_face_language_model(tmp_path):
    """Its loss is divided by the number of tokens of all micro-batches, and so are its gradients."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from sdelens.callbacks import HuggingFaceNoise

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(3, (COUNT, 16), generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    model.zero_grad()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=SIZE,
        gradient_accumulation_steps=ACCUMULATE,
        max_steps=24,  # three epochs of 8 steps
        learning_rate=1e-9,
        max_grad_norm=1e-3,  # of gradients that are already accumulated
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    noise = HuggingFaceNoise(trainer, every=24, windows=24, prefix="")
    trainer.add_callback(noise)
    trainer.train()
    (found,) = noise.history
    assert found.numbers["gradient_norm"] == pytest.approx(norm, rel=0.2)
    assert found.numbers["micro_batches"] == 24 * ACCUMULATE


@pytest.mark.slow
def test_lightning(data, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.plugins import MixedPrecision

    from sdelens.callbacks import LightningNoise

    class Module(lightning.LightningModule):
        def __init__(self, automatic=True):
            super().__init__()
            self.model, self.automatic_optimization = Regression(), automatic

        def training_step(self, batch, _):
            loss = self.model(**batch)["loss"]
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-6)

    def fit(module, loader=None, size=None, **options):
        noise = LightningNoise(every=20, windows=20, batch_size=size)
        logger = lightning.loggers.CSVLogger(tmp_path)
        given = {"accumulate_grad_batches": ACCUMULATE, "max_steps": STEPS, "max_epochs": -1, **options}
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=logger,
            callbacks=[noise],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
            plugins=[MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))],
            **given,
        )
        if loader is None:
            loader = torch.utils.data.DataLoader(data, batch_size=SIZE, shuffle=True)
        trainer.fit(module, loader)
        logger.save()
        return noise, logger

    module = Module()
    noise, logger = fit(module)
    import pandas as pd

    written = pd.read_csv(f"{logger.log_dir}/metrics.csv")
    rows = written[written["noise/noise_scale"].notna()]
    assert rows.step.tolist() == [20, 40]
    assert written.loss.notna().any()
    is_right(rows.iloc[-1].to_dict(), data, errors=3)
    assert noise.history[-1].diagnosis is not None
    assert all(not p._backward_hooks for p in module.parameters())
    with pytest.raises(ValueError, match="accumulate_grad_batches: got 1"):
        fit(Module(), accumulate_grad_batches=1)
    with pytest.raises(ValueError, match=r"Module.automatic_optimization: got False"):
        fit(Module(automatic=False), accumulate_grad_batches=1)
    loader = torch.utils.data.DataLoader(data, batch_sampler=[[i, i + 1, i + 2, i + 3] for i in range(0, COUNT, 4)])
    with pytest.raises(ValueError, match="batch_size: got None"):
        fit(Module(), loader)
    assert fit(Module(), loader, size=SIZE)[0].history


def test_optax_sums_are_those_of_the_gradients():
    """Of two steps of three micro-batches: ‖∇f‖² and tr Σ from their formulas, and nothing of an incomplete step."""
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    from sdelens.callbacks import add_stack, noise_of, noise_sums

    rng = np.random.default_rng(0)
    stack = {"w": rng.normal(size=(6, 5)).astype(np.float32) + 2, "b": rng.normal(size=6).astype(np.float32)}
    flat = np.concatenate([stack["w"], stack["b"][:, None]], axis=1).astype(float).reshape(2, 3, 6)
    own, total = (flat**2).sum(axis=(1, 2)), (flat.sum(axis=1) ** 2).sum(axis=1)
    tx = optax.chain(noise_sums(3, windows=2), optax.MultiSteps(optax.adam(1e-3), 3).gradient_transformation())
    params = {"w": np.zeros(5, np.float32), "b": np.zeros((), np.float32)}
    state = jax.jit(tx.init)(params)
    step = jax.jit(tx.update)
    for i in range(6):
        state = step({name: g[i] for name, g in stack.items()}, state, params)[1]
    found = noise_of(state, batch_size=4)
    assert found.gradient_square == pytest.approx(((total - own) / 6).mean(), rel=1e-5)
    assert found.trace == pytest.approx((4 * (own - total / 3) / 2).mean(), rel=1e-5)
    assert found.step_batch_size == 12
    assert found.groups.loc["b", "size"] == 1
    again = jax.jit(add_stack)(state[0], stack)  # two other steps of the same gradients take the place of the first
    np.testing.assert_allclose(again.rows, state[0].rows, rtol=1e-6)
    later = step({name: g[0] for name, g in stack.items()}, state, params)[1]
    assert noise_of(later, batch_size=4).count == 3  # the place of the older step is being written
    broken = step({name: g[0] * np.nan for name, g in stack.items()}, state, params)[1]
    assert noise_of(broken, batch_size=4).count == 3
    with pytest.raises(ValueError, match="contains 0 NoiseSums"):
        noise_of(state[1], batch_size=4)
    with pytest.raises(ValueError, match="has seen 0 micro-batches"):
        noise_of(jax.jit(tx.init)(params), batch_size=4)
    with pytest.raises(ValueError, match="accumulate: got 1"):
        noise_sums(1)


def test_optax_verdict_and_advice():
    """In a state that is not that of a real run: what is logged, by name."""
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    from sdelens.callbacks import measure, noise_of, noise_sums

    rng = np.random.default_rng(0)
    params = np.zeros(50, np.float32)
    tx = optax.chain(noise_sums(4), optax.adamw(1e-3, b1=0.9, b2=0.99))
    state, step = jax.jit(tx.init)(params), jax.jit(tx.update)
    for _ in range(24):
        state = step(1 + rng.normal(size=50).astype(np.float32), state, params)[1]
    adamw = {"optimizer": "adamw", "lr": 1e-3, "betas": (0.9, 0.99)}
    found = measure(noise_of(state, batch_size=2), 24, state, adamw, b1=0.9, b2=0.99)
    assert {f"noise/{name}" for name in NAMES} <= found.numbers.keys()
    assert found.numbers["noise/noise_scale"] == pytest.approx(2, rel=0.3)
    assert found.diagnosis.verdict() in found.text
    only = measure(noise_of(state, batch_size=2), 24)
    assert only.text
    assert sl.GradientNoise is type(only.noise)
