"""Checkpoints of PyTorch on disk, rescaled to another batch size."""

import errno
import json
from unittest.mock import Mock

import pytest
import typer
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

import sdelens as sl  # noqa: E402
from sdelens.shell.command import Command  # noqa: E402
from sdelens.shell.rescale import rescale  # noqa: E402
from sdelens.shell.session import refusals  # noqa: E402
from tests.torch_runs import SCHEDULERS, same  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*epoch parameter.*")


def model_run(steps=60, kind="AdamW", **options):
    """A small regression with warm-up and cosine, after some steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    optimizer = getattr(torch.optim, kind)(model.parameters(), **{"lr": 1e-2, "betas": (0.9, 0.99), **options})
    scheduler = SCHEDULERS["SequentialLR"](optimizer)
    for _ in range(steps):
        x = torch.randn(8, 5)
        optimizer.zero_grad()
        (model(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


def state_of(optimizer):
    """Its state dict as PyTorch writes it from 2.7 on: before, that of AdamW does not say that it is not Adam's."""
    state = optimizer.state_dict()
    if isinstance(optimizer, torch.optim.AdamW):
        for group in state["param_groups"]:
            group["decoupled_weight_decay"] = True
    return state


@pytest.mark.parametrize("kind", ["AdamW", "NAdam", "RAdam"])
def test_a_plain_checkpoint_becomes_what_the_live_run_becomes(tmp_path, kind):
    model, optimizer, scheduler = model_run(kind=kind, weight_decay=0.1)
    old = {"model": model.state_dict(), "training": [state_of(optimizer), scheduler.state_dict()], "step": 60}
    torch.save(old, tmp_path / "old.pt")
    content = (tmp_path / "old.pt").read_bytes()
    account = sl.torch.rescale_checkpoint(tmp_path / "old.pt", 4, tmp_path / "new.pt")
    assert (tmp_path / "old.pt").read_bytes() == content
    new = torch.load(tmp_path / "new.pt", weights_only=True)
    sl.torch.rescale(optimizer, 4, scheduler=scheduler, interval="step")
    assert same(new["training"][0], state_of(optimizer))
    assert same(new["training"][1], scheduler.state_dict())
    assert same(new["model"], old["model"])
    assert account.path == tmp_path / "new.pt"
    assert account.arguments["lr"] == pytest.approx(2e-2)
    assert account.arguments["SequentialLR.milestones"] == [25]
    assert "Left as they are in the file: step = 60, which is 15 steps of the new batch." in account.assumed
    assert "New arguments:" in str(account)


def test_a_folder_of_the_trainer_and_its_last_checkpoint(tmp_path):
    _, optimizer, scheduler = model_run(62)
    for number in (9, 62):
        (tmp_path / f"out/checkpoint-{number}").mkdir(parents=True)
    folder = tmp_path / "out/checkpoint-62"
    torch.save(state_of(optimizer), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    (folder / "training_args.bin").write_bytes(b"a pickle that must not be executed")
    state = {"global_step": 62, "max_steps": 501, "epoch": 0.5, "eval_steps": 50, "save_steps": 0.1}
    (folder / "trainer_state.json").write_text(json.dumps({**state, "train_batch_size": 8, "log_history": []}))
    account = sl.torch.rescale_checkpoint(tmp_path / "out", 4, tmp_path / "new", warmup=99, clip_norm=1.0)
    found = json.loads((tmp_path / "new/trainer_state.json").read_text())
    assert [found[k] for k in state] == [16, 125, 0.5, 13, 0.1]
    assert found["train_batch_size"] == 32
    assert (tmp_path / "new/training_args.bin").read_bytes() == (folder / "training_args.bin").read_bytes()
    assert torch.load(tmp_path / "new/scheduler.pt", weights_only=True)["last_epoch"] == 16
    wanted = {"learning_rate": 2e-2, "adam_beta1": 0.6, "adam_beta2": 0.96, "weight_decay": 0.02, "max_steps": 125}
    wanted |= {"warmup_steps": 25, "max_grad_norm": 0.5, "per_device_train_batch_size": 32, "eval_steps": 13}
    assert {key: account.arguments[key] for key in wanted} == pytest.approx(wanted)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out"]


def test_a_checkpoint_of_lightning(tmp_path):
    _, optimizer, scheduler = model_run(62)
    count = {"ready": 62, "completed": 62}
    fit = {
        "epoch_loop.state_dict": {"_batches_that_stepped": 62},
        "epoch_loop.batch_progress": {"total": count, "current": count, "is_last_batch": False},
        "epoch_loop.scheduler_progress": {"total": count},
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": {"total": count}}},
        "epoch_loop.val_loop.batch_progress": {"total": count},
        "epoch_progress": {"total": {"ready": 2}},
    }
    content = {"pytorch-lightning_version": "2.6", "epoch": 2, "global_step": 62, "loops": {"fit_loop": fit}}
    content |= {"optimizer_states": [state_of(optimizer)], "lr_schedulers": [scheduler.state_dict()]}
    torch.save(content, tmp_path / "old.ckpt")
    sl.torch.rescale_checkpoint(tmp_path / "old.ckpt", 4, tmp_path / "new.ckpt")
    new = torch.load(tmp_path / "new.ckpt", weights_only=True)
    loop = new["loops"]["fit_loop"]
    assert (new["global_step"], new["epoch"], new["lr_schedulers"][0]["last_epoch"]) == (16, 2, 16)
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == 16
    assert loop["epoch_loop.batch_progress"] == {
        "total": {"ready": 16, "completed": 16},
        "current": {"ready": 16, "completed": 16},
        "is_last_batch": False,
    }
    assert loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"] == 16
    assert loop["epoch_loop.val_loop.batch_progress"]["total"]["ready"] == 62
    assert loop["epoch_progress"]["total"]["ready"] == 2


def stored(path, content):
    torch.save(content, path)
    return path


def without(state, name):
    state["state"][0].pop(name)
    return state


def unlike_adam(state):
    for group in state["param_groups"]:
        group.pop("decoupled_weight_decay", None)
        group["betas3"] = 0.9
    return state


def older(state):
    for group in state["param_groups"]:
        group.pop("decoupled_weight_decay", None)
    return state


def stranger(state):
    state["state"][7] = state["state"][0]
    return state


STEP_LR = {"step_size": "often", "gamma": 0.1}
BAD = {
    "no optimizer": (lambda s: {"model": {}}, "must hold the state dict of one optimizer"),
    "two optimizers": (lambda s: {"a": s, "b": s}, "but has a, b"),
    "more than data": (
        lambda s: {"optimizer": s, "model": torch.nn.Linear(1, 1)},
        "contains more than tensors and plain",
    ),
    "Adam or AdamW": (lambda s: {"optimizer": older(s)}, "optimizer='AdamW' or optimizer='Adam'"),
    "another optimizer": (
        lambda s: {"optimizer": unlike_adam(s)},
        "cannot tell which optimizer has groups with amsgrad",
    ),
    "a broken state": (lambda s: {"optimizer": without(s, "exp_avg")}, "cannot tell which optimizer"),
    "an unknown scheduler": (
        lambda s: {"optimizer": s, "scheduler": {"last_epoch": 3, "_last_lr": [0.1], "T_own": 3}},
        "cannot tell which scheduler has a state dict with T_own",
    ),
    "no base_lrs": (
        lambda s: {"optimizer": s, "scheduler": {"last_epoch": 3, "_last_lr": [0.1], "step_size": 3, "gamma": 0.1}},
        "the state dict of StepLR has no base_lrs",
    ),
    "no number of steps": (
        lambda s: {"optimizer": s, "scheduler": {"last_epoch": 3, "_last_lr": [0.1], "base_lrs": [0.1], **STEP_LR}},
        "got 'often' as a number of steps",
    ),
    "a stranger": (stranger, "1 states are of parameters that are in no parameter group"),
    "no params": (lambda s: {"state": {}, "param_groups": [{}]}, "is not the state dict of an optimizer"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_a_checkpoint_that_cannot_be_rescaled_is_refused_and_nothing_is_written(tmp_path, make, message):
    _, optimizer, _ = model_run(3, weight_decay=0.1)
    path = stored(tmp_path / "old.pt", make(state_of(optimizer)))
    with pytest.raises(ValueError, match=message):
        sl.torch.rescale_checkpoint(path, 2, tmp_path / "new.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["old.pt"]


def test_paths_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    path = stored(tmp_path / "old.pt", state_of(model_run(3)[1]))
    with pytest.raises(FileExistsError, match="exists already"):
        sl.torch.rescale_checkpoint(path, 2, path)
    with pytest.raises(FileNotFoundError, match="path: "):
        sl.torch.rescale_checkpoint(tmp_path / "none.pt", 2, tmp_path / "new.pt")
    with pytest.raises(FileNotFoundError, match="out: the folder"):
        sl.torch.rescale_checkpoint(path, 2, tmp_path / "none/new.pt")
    refused = PermissionError(errno.EACCES, "Permission denied", ".new.pt.a3x.pt")
    monkeypatch.setattr("tempfile.mkstemp", Mock(side_effect=refused))
    with pytest.raises(
        PermissionError, match=r"^out: '.*/new\.pt' cannot be written \(Permission denied\); give anoth"
    ):
        sl.torch.rescale_checkpoint(path, 2, tmp_path / "new.pt")
    monkeypatch.undo()
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp/.metadata").touch()
    with pytest.raises(ValueError, match="format_utils dcp_to_torch"):
        sl.torch.rescale_checkpoint(tmp_path / "dcp", 2, tmp_path / "new")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ValueError, match=r"empty\.pt' is empty"):
        sl.torch.rescale_checkpoint(tmp_path / "empty.pt", 2, tmp_path / "new.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint at all")
    with pytest.raises(ValueError, match=r"text\.pt"):
        sl.torch.rescale_checkpoint(tmp_path / "text.pt", 2, tmp_path / "new.pt")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="has none of optimizer"):
        sl.torch.rescale_checkpoint(tmp_path / "nothing", 2, tmp_path / "new")
    with pytest.raises(ValueError, match="got 'RMSprop', but the parameter groups have no alpha"):
        sl.torch.rescale_checkpoint(path, 2, tmp_path / "new.pt", optimizer="RMSprop")
    with pytest.raises(ValueError, match="got 'Lion', whose states have exp_avg, but here one has"):
        sl.torch.rescale_checkpoint(path, 2, tmp_path / "new.pt", optimizer="Lion")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.pt").exists()


def test_the_command_prints_the_new_arguments_and_refuses_in_one_line(tmp_path):
    program = typer.Typer(add_completion=False)
    program.command(cls=Command)(refusals()(rescale))
    old = stored(tmp_path / "old.pt", {"optimizer": older(model_run(3, weight_decay=0.1)[1].state_dict())})
    call = [str(old), "--ratio", "4", "--out", str(tmp_path / "new.pt")]
    refused = CliRunner().invoke(program, call)
    assert refused.exit_code == 2
    assert refused.output.startswith("sdelens: optimizer: this checkpoint is of Adam or of AdamW")
    told = CliRunner().invoke(program, [*call, "--optimizer", "AdamW"])
    assert told.exit_code == 0
    assert "--betas (0.6, 0.96)" in told.output
    assert "--weight_decay 0.2" in told.output
    group = torch.load(tmp_path / "new.pt", weights_only=True)["optimizer"]["param_groups"][0]
    assert (group["betas"], group["weight_decay"]) == (pytest.approx((0.6, 0.96)), pytest.approx(0.2))
