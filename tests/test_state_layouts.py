"""The names of tensors, and the layouts in which training code saves the state of an optimizer."""

import enum
import pickle
import sys
import types
from pathlib import Path

import pytest

from sdelens.diagnosis._checkpoint import from_files
from sdelens.diagnosis._sources import in_memory
from tests.states import BASE, MEANS, assert_moments, by_name, needs_torch, saved, torch, trained

# Names


def by_rank(model):
    """Two groups, as training loops make them: matrices with weight decay, and the rest without."""
    parameters = list(model.parameters())
    groups = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]]
    return torch.optim.AdamW([dict(params=groups[0], weight_decay=0.1), dict(params=groups[1], weight_decay=0.0)])


@needs_torch
def test_names_of_groups_that_are_not_in_the_order_of_the_model(tmp_path):
    model, optimizer = trained(by_rank)
    values = {id(p): name for name, p in model.named_parameters()}
    wanted = [values[id(p)] for group in optimizer.param_groups for p in group["params"]]
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    found = list(in_memory(whole))
    assert [t.name for t in found] == wanted
    assert all(torch.equal(t.x, model.state_dict()[t.name]) for t in found)
    # Two layers of the same shapes, of which either may be frozen: nothing says which was trained.
    twins = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    twins[0].requires_grad_(False)
    _, optimizer = trained(lambda m: torch.optim.Adam(m[1].parameters()), model=twins)
    found = in_memory({"model": twins.state_dict(), "optimizer": optimizer.state_dict()})
    assert [t.name for t in found] == ["parameter 0", "parameter 1"]


class Tied(torch.nn.Module if torch else object):
    """An embedding that is the last layer too, and blocks of a few layers."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 4)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 5, bias=False) for _ in range(11))
        self.norm = torch.nn.LayerNorm(4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


@needs_torch
def test_names_from_the_header_of_a_safetensors_file(tmp_path):
    """Its names are sorted, as 10 before 2: names go with shapes; what has several of the same stays numbered."""
    from safetensors.torch import save_file

    model, optimizer = trained(model=Tied())
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert [t.name for t in from_files(tmp_path)][:2] == ["parameter 0", "parameter 1"]
    weights = {k: v.clone() for k, v in model.state_dict().items() if k != "head.weight"}
    save_file(weights, tmp_path / "model.safetensors")
    found = [t.name for t in from_files(tmp_path)]
    assert found == ["embedding.weight", *(f"blocks.{i}.weight" for i in range(11)), "parameter 12", "parameter 13"]
    (tmp_path / "model.safetensors").write_bytes(b"12345678{}")
    assert next(from_files(tmp_path)).name == "parameter 0"
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(whole, tmp_path / "whole.pt")
    assert [t.name for t in from_files(tmp_path / "whole.pt")] == list(weights)  # tied weights occur once


# Layouts


@needs_torch
def test_flattened_state_dicts():
    model, optimizer = trained(by_rank)
    names = {id(p): name for name, p in model.named_parameters()}
    flat = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            flat |= {f"state.{name}.{k}": v for k, v in optimizer.state[parameter].items()}
            flat |= {f"param_groups.{name}.{k}": v for k, v in group.items() if k != "params"}
    for found in (in_memory(flat), in_memory({"model": model.state_dict(), "optim": flat})):
        tensors = list(found)
        assert [t.name for t in tensors] == [names[id(p)] for g in optimizer.param_groups for p in g["params"]]
        assert_moments(tensors, in_memory(optimizer))
    tensors = list(in_memory({"model": model.state_dict(), "optim": flat}))
    assert [t.weight_decay for t in tensors] == [0.1, 0.1, 0, 0, 0, 0]
    assert torch.equal(tensors[1].x, model.state_dict()[tensors[1].name])


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@needs_torch
@pytest.mark.parametrize("flat", [True, False, None])
def test_distributed_checkpoints_are_read_in_one_process(tmp_path, monkeypatch, flat):
    import torch.distributed.checkpoint as distributed
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    monkeypatch.setattr("sdelens.diagnosis._dcp._SCALARS", 3)  # most are read when they are needed
    model, optimizer = trained()
    state = optimizer.state_dict()
    if flat is not None:
        state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat))
    folder = tmp_path / "checkpoint-3" / "optimizer_0"
    target = tmp_path / "executed"
    with pytest.warns(UserWarning, match="single process"):
        distributed.save({"model": model.state_dict(), "optim": state, "evil": Evil(target)}, checkpoint_id=folder)
    target.unlink(missing_ok=True)  # by the writer
    for path in (folder, tmp_path):
        found = by_name(from_files(path))
        assert_moments([found[name] for name, _ in model.named_parameters()], in_memory(optimizer))
        assert torch.equal(found["0.weight"].x, model.state_dict()["0.weight"])
    assert not target.exists()
    (folder / "__0_0.distcp").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"optimizer_0' cannot be read as a distributed checkpoint"):
        list(from_files(folder))
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(ValueError, match=r"contains more than the description of tensors, and was not read"):
        list(from_files(folder))
    assert not target.exists()
    (folder / ".metadata").unlink()
    with pytest.raises(ValueError, match=r"incomplete; give an earlier one"):
        list(from_files(folder))


def foreign(monkeypatch, name, make):
    """A class of a library that is not installed, as it lies in a pickle."""
    module, _, last = name.rpartition(".")
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), types.ModuleType(parts[depth - 1]))
    kind = make(last)
    kind.__module__, kind.__qualname__ = module, last
    setattr(sys.modules[module], last, kind)
    return kind


@needs_torch
def test_deepspeed_files_with_its_own_classes(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-20" / "global_step20"
    folder.mkdir(parents=True)
    (tmp_path / "checkpoint-3").mkdir()
    with monkeypatch.context() as patch:
        scaler = foreign(patch, "deepspeed.runtime.fp16.loss_scaler.LossScaler", lambda n: type(n, (), {}))
        stage = foreign(patch, "deepspeed.runtime.zero.config.ZeroStageEnum", lambda n: enum.Enum(n, {"gradients": 2}))
        group = {**BASE, "bias_correction": True, "step": 7}
        parts = [saved(MEANS, group, (10,)) for _ in range(2)]
        for rank, part in enumerate(parts):
            part["state"][0]["exp_avg"] += rank
            content = {"loss_scaler": scaler(), "zero_stage": stage.gradients, "base_optimizer_state": part}
            name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            torch.save({"optimizer_state_dict": content, "ds_version": "0.19"}, folder / name)
        torch.save({"module": {}, "ds_config": {}}, folder / "mp_rank_00_model_states.pt")
    assert "deepspeed.runtime.zero.config" not in sys.modules
    for path in (folder, tmp_path):
        assert_moments(from_files(path), [t for part in parts for t in in_memory(part)])
    content = {"optimizer_state_dict": {"base_optimizer_state": [parts[0]["state"][0]], "base_optimizer_state_step": 7}}
    torch.save(content, tmp_path / "elastic.pt")
    assert "no parameter groups" in next(from_files(tmp_path / "elastic.pt")).reason


@needs_torch
def test_megatron_files(tmp_path):
    folder = tmp_path / "iter_0000020" / "mp_rank_00"
    folder.mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20\n")
    torch.manual_seed(3)
    buffers = [{"param": torch.ones(9), "exp_avg": torch.randn(9), "exp_avg_sq": torch.rand(9), "numel_unpadded": 9}]
    key = (torch.bfloat16, torch.float32)
    torch.save({"buckets_coalesced": True, 0: {key: buffers[0]}}, folder / "distrib_optim.pt")
    found = next(from_files(tmp_path))
    assert "number of steps is missing" in found.reason
    groups = [{**BASE, "bias_correction": True, "step": 7, "wd_mult": w, "weight_decay": 0.1 * w} for w in (1.0, 0.0)]
    torch.save({"optimizer": {"optimizer": {"param_groups": groups}}, "iteration": 20}, folder / "model_optim_rng.pt")
    for path in (tmp_path, folder / "distrib_optim.pt"):
        (found,) = from_files(path)
        assert found.reason is None
        assert (found.steps, found.b1, found.b2, found.size, found.weight_decay) == (7, 0.9, 0.99, 9, None)
        assert torch.equal(found.v, buffers[0]["exp_avg_sq"])


@needs_torch
def test_folders_of_trainers(tmp_path):
    """The last checkpoint of a Trainer; of files of several steps the last one, and a copy of it only once."""
    for step in (4, 20, 3):
        folder = tmp_path / "trainer" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        _, optimizer = trained(steps=step)
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        torch.save({"base_lrs": [1e-3]}, folder / "scheduler.pt")
        (tmp_path / "trainer" / "training_args.bin").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    assert {t.steps for t in from_files(tmp_path / "trainer")} == {20}
    lightning = tmp_path / "logs" / "version_1" / "checkpoints"
    lightning.mkdir(parents=True)
    for step, names in ((2, ["epoch=0-step=2.ckpt"]), (4, ["epoch=1-step=4.ckpt", "last.ckpt"])):
        model, optimizer = trained(steps=step)
        content = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": step}
        for name in names:
            torch.save(content, lightning / name)
    found = list(from_files(tmp_path / "logs"))
    assert_moments(found, in_memory(trained(steps=4)[1]))
    assert found[0].name == "0.weight"
    assert "the last one is used (epoch=1-step=4.ckpt), and not epoch=0-step=2.ckpt" in found[0].remark
    timm = tmp_path / "timm"
    timm.mkdir()
    torch.save(
        {"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, timm / "last.pth.tar"
    )
    assert_moments(from_files(timm), in_memory(optimizer))
    for name in ("optimizer.bin", "optimizer_1.bin"):
        torch.save(optimizer.state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=r"contains 2 optimizers \('optimizer.bin', 'optimizer_1.bin'\)"):
        list(from_files(tmp_path))
    assert not (tmp_path / "executed").exists()


@needs_torch
def test_files_of_other_formats_say_what_to_give(tmp_path):
    for name, said in (
        ("model.safetensors", "holds a model without its optimizer"),
        ("__0_0.distcp", "give its folder"),
        ("checkpoint.msgpack", "msgpack_restore"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=said):
            list(from_files(tmp_path / name))
    torch.save({**trained()[1].state_dict(), "config": types.SimpleNamespace(a=1), "x": Evil("/")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"tensors and plain data \(.*\), and was not read"):
        list(from_files(tmp_path / "a.pt"))
    torch.save({**trained()[1].state_dict(), "config": types.SimpleNamespace(a=1)}, tmp_path / "a.pt")
    assert_moments(from_files(tmp_path / "a.pt"), in_memory(trained()[1]))
