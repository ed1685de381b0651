"""Precision, accumulation and the cutting of a batch: numbers by hand, refusals with reasons."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from pretrain.config.pretrain import ComputeConfig, PretrainConfig
from pretrain.runtime.distributed import Processes
from pretrain.training import DivergedError, Trainer, precision

Make = Callable[..., PretrainConfig]
CPU = Processes(torch.device("cpu"))
CW_RGP = {
    "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2},
    "model": {"projector_hidden": 16, "embedding_dim": 32},
}


class TwoProcesses(Processes):
    @property
    def size(self) -> int:
        return 2


def without_batchnorm(module: nn.Module) -> None:
    """Leave every BatchNorm out, so that images do not meet before the loss."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        without_batchnorm(child)


def grads(trainer: Trainer, views: Tensor) -> list[Tensor]:
    trainer.gradients(trainer.model, views)
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


def test_accumulated_gradients_of_channel_whitening_are_those_of_the_whole(
    tiny: Make, tmp_path: Path
) -> None:
    views = torch.randn(2, 8, 3, 32, 32)
    partition = torch.stack([torch.stack([torch.randperm(32) for _ in range(2)]) for _ in range(2)])
    found: dict[int, list[Tensor]] = {}
    for accumulate in (1, 2):
        trainer = Trainer(tiny(**CW_RGP, compute={"accumulate": accumulate}), tmp_path, CPU)
        without_batchnorm(trainer.model)
        draws = iter(partition[None].chunk(accumulate, dim=1))
        original = trainer.loss.forward

        def in_order(x: Tensor, original=original, draws=draws, **_: object) -> Tensor:  # type: ignore[no-untyped-def]
            rows = torch.arange(x.shape[1])[None]
            value: Tensor = original(x, batch_permutation=rows, channel_partition=next(draws))
            return value

        trainer.loss.forward = in_order  # type: ignore[method-assign, assignment]
        found[accumulate] = grads(trainer, views)
    for whole, parts in zip(found[1], found[2], strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    assert max(float(grad.abs().max()) for grad in found[1]) > 1e-3


def test_what_this_machine_cannot_do_is_refused(tiny: Make) -> None:
    cpu, synchronised = torch.device("cpu"), tiny(compute={"sync_batchnorm": True})
    assert precision.machine_faults(tiny(), 1, cpu) == []
    assert precision.machine_faults(synchronised, 1, cpu) == []
    (fault,) = precision.machine_faults(synchronised, 2, cpu)
    assert fault.startswith("compute.sync_batchnorm needs GPUs") and "got 2 CPU processes" in fault
    (fault,) = precision.machine_faults(tiny(compute={"precision": "fp16"}), 1, cpu)
    assert fault == "compute.precision fp16 needs a GPU; use float32 here"
    (fault,) = precision.machine_faults(tiny(compute={"precision": "tf32"}), 1, cpu)
    assert fault == "compute.precision tf32 needs a GPU; use float32 here"
    probed = tiny(probe={"every_epochs": 1, "precision": "tf32"})
    (fault,) = precision.machine_faults(probed, 1, cpu)
    assert fault == "probe.precision tf32 needs a GPU; use float32 here"


def test_float32_is_ieees_and_tf32_another_result(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "tf32_faults", lambda *_: [])
    results = {}
    for name in ("tf32", "float32", "bf16"):
        trainer = Trainer(tiny(compute={"precision": name}), tmp_path, CPU)
        results[name] = trainer.config.identity()["compute"]["precision"]
        allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        assert allowed == (name == "tf32",) * 2
    assert results == {name: name for name in results}


@pytest.mark.usefixtures("small_net")  # a CPU without bf16 is slow in it
@pytest.mark.parametrize("name", ["simclr", "simsiam", "byol", "moco-v2"])
def test_what_a_method_adds_runs_in_bf16_and_is_kept_in_float32(
    tiny: Make, tmp_path: Path, name: str
) -> None:
    loss = {"name": name, **({"queue": 16} if name == "moco-v2" else {})}
    trainer = Trainer(tiny(compute={"precision": "bf16"}, loss=loss), tmp_path, CPU)
    trainer._set_rates()
    kinds: set[torch.dtype] = set()
    for part in trainer.model.children():
        part.register_forward_hook(lambda _, __, y: kinds.add(y.dtype))
    output = trainer.gradients(trainer.model, torch.randn(2, 8, 3, 32, 32))
    assert kinds == {torch.bfloat16} and output.loss.dtype == torch.float32
    assert output.loss.isfinite()
    trainer.update()
    trainer.model.after_step()
    state = trainer.model.state_dict().values()
    assert {value.dtype for value in state} == {torch.float32, torch.int64}


@pytest.mark.usefixtures("small_net")
def test_bf16_runs_the_encoder_in_it_and_the_loss_in_float32(
    tiny: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    trainer = Trainer(tiny(compute={"precision": "bf16"}), tmp_path, CPU)
    assert "this CPU has no bf16 instructions" in caplog.text
    output = trainer.gradients(trainer.model, torch.randn(2, 8, 3, 32, 32))
    assert output.embedding.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    plain = Trainer(tiny(), tmp_path, CPU)
    assert plain.gradients(plain.model, torch.randn(2, 8, 3, 32, 32)).embedding.dtype == (
        torch.float32
    )


def test_channels_last_and_compile_reach_the_model(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []

    def note(module: nn.Module) -> None:
        compiled.append(module)

    monkeypatch.setattr(nn.Module, "compile", note)
    settings = {"channels_last": True, "compile": True}
    trainer = Trainer(tiny(compute=settings), tmp_path, CPU)
    kernel = trainer.model.encoder.get_submodule("layer1.0.conv1").weight
    assert isinstance(kernel, Tensor)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert compiled == [trainer.model.encoder]
    branch = Trainer(tiny(compute=settings, loss={"name": "byol"}), tmp_path, CPU).model
    assert compiled[1:] == [branch.encoder, branch.get_submodule("momentum_encoder")]
    kernel = branch.get_parameter("momentum_encoder.layer1.0.conv1.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert tiny(compute=settings).identity() == tiny().identity()
    assert tiny(compute={"precision": "bf16"}).identity() != tiny().identity()


def test_the_encoder_is_compiled_once_for_all_views(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = CompileCounter()
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: original(self, backend=compiler))
    trainer = Trainer(tiny(compute={"compile": True}, num_views=4), tmp_path, CPU)
    trainer.gradients(trainer.model, torch.randn(4, 8, 3, 32, 32))
    assert compiler.frame_count == 1
    layers = [part for part in trainer.model.encoder.modules() if not list(part.children())]
    assert len(layers) < compiler.op_count < 2 * len(layers)  # BatchNorms count batches too


def test_views_of_differing_sizes_have_a_graph_for_each_size(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, original = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: original(self, backend=compiler, **how)
    )
    views = [{"count": 2}, {"size": 48}, {"size": 64}]
    config = tiny(compute={"compile": True}, augment={"size": 32, "views": views})
    trainer = Trainer(config, tmp_path, CPU)
    for _ in range(2):
        sides = (32, 32, 48, 64)
        trainer.gradients(trainer.model, tuple(torch.randn(8, 3, side, side) for side in sides))
    assert compiler.frame_count == 3


@pytest.fixture
def scaled(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Trainer]:
    """Return a function that makes a trainer with SGD; fp16's scaling on a CPU, in float32."""
    monkeypatch.setattr(precision, "machine_faults", lambda *_: [])
    monkeypatch.setattr(precision, "autocast", lambda *_: contextlib.nullcontext())

    def make(precision: str) -> Trainer:
        optimizer = {"name": "sgd", "lr": 0.1, "warmup_steps": 0}
        config = tiny(compute={"precision": precision}, optimizer=optimizer)
        trainer = Trainer(config, tmp_path, CPU)
        trainer._set_rates()
        return trainer

    return make


def test_fp16_scales_the_loss_and_not_the_step(scaled: Callable[[str], Trainer]) -> None:
    views = torch.randn(2, 8, 3, 32, 32)
    plain, trainer = scaled("float32"), scaled("fp16")
    assert trainer.scaler.get_scale() == 2**16
    for own, scaled_grad in zip(grads(plain, views), grads(trainer, views), strict=True):
        torch.testing.assert_close(scaled_grad / 2**16, own, rtol=1e-3, atol=1e-6)
    plain.update()
    trainer.update()
    for own, other in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(other, own, rtol=1e-4, atol=1e-6)


def test_fp16_leaves_out_steps_that_overflow_and_stops_where_all_do(
    scaled: Callable[[str], Trainer],
) -> None:
    views, trainer = torch.randn(2, 8, 3, 32, 32), scaled("fp16")
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    output = trainer.gradients(trainer.model, views)
    first = next(trainer.model.parameters()).grad
    assert first is not None
    first.view(-1)[0] = math.inf
    trainer._watch(output, views)
    trainer.update()
    trainer._agree(0)  # one overflow is nothing to stop for
    assert all(map(torch.equal, trainer.model.parameters(), before))
    assert trainer.scaler.get_scale() == 2**15
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 2.0**-15})
    trainer._watch(output, views)
    with pytest.raises(DivergedError, match="norm of the gradient became inf"):
        trainer._agree(0)


def test_another_precision_scales_nothing() -> None:
    assert not precision.grad_scaler(ComputeConfig(), CPU.device).is_enabled()
    assert not precision.grad_scaler(ComputeConfig(precision="bf16"), CPU.device).is_enabled()
    with precision.autocast(ComputeConfig(), CPU.device):
        assert not torch.is_autocast_enabled("cpu")
