"""The published training scripts, run as they are on a tiny network, beside our training step.

The scripts keep their command line, loop, method, head, optimiser and schedule. What stands in for
the rest: random views for a data set, two convolutions for the ResNet, float64. For the schedules a
single weight stands in for the whole model, so that hundreds of steps cost nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.parity.child import recorded_permutations
from benchmarks.parity.comparison import Row, compare_tensors, compare_values, series
from benchmarks.parity.losses import split_draws
from benchmarks.parity.peers import call
from pretrain.config.loss import LossConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import build_loss
from pretrain.models.encoder import SelfSupervisedModel, build_projector
from pretrain.training.optimizers import build_optimizer
from pretrain.training.schedule import Length, covariance_weight, lr_factor

WIDTH = 16  # features of the tiny encoder
# more than the 16 of the embedding: with as many, the gradient of W-MSE's last row would be zero
HIDDEN = 32
TOLERANCE = 1e-9  # of float64, after steps that amplify rounding
# their output is centred next, so that their gradient is rounding, which Adam makes a step of
CENTRED_NEXT = ("projector.0.bias", "projector.3.bias", "projector.1.running_mean")
CENTRED_TOLERANCE = 1e-6
PEAK_KEPT = (
    "after a warm-up that ends within a later epoch the published loop keeps the peak rate until "
    "the next epoch begins, ours takes the cosine's at once; ImageNet's recipes end it in the first"
)


@dataclass(frozen=True)
class Loop:
    """One published script with its arguments, and the same in this project's words."""

    name: str
    peer: str
    script: str
    arguments: str
    config: dict[str, Any]
    steps_per_epoch: int

    @property
    def our_config(self) -> PretrainConfig:
        """Return the pretraining config that says the same."""
        model = {"arch": "resnet18", "projector_hidden": HIDDEN, "embedding_dim": 16}
        config: dict[str, Any] = {
            "method": self.config["loss"]["name"], "data": {"name": "drawn", "root": "."},
            "augment": {"size": 8}, "model": model, "num_views": 2, "batch_size": 32,
        }  # fmt: skip
        config |= {key: value for key, value in self.config.items() if key != "layers"}
        config["model"] = model | {"projector_layers": self.config.get("layers", 2)}
        return PretrainConfig.model_validate(config)

    @property
    def length(self) -> Length:
        """Return how long the run is."""
        config = self.our_config
        return Length.of(config, self.steps_per_epoch * config.batch_size)


ADAM = {"name": "adam", "lr": 3e-3, "weight_decay": 1e-6, "schedule": "step", "drop_factor": 0.2}
SGD = {
    "name": "sgd", "lr_per_256": 0.05, "momentum": 0.9, "weight_decay": 1e-4,
    "schedule": "cosine", "lr_update": "epoch",
}  # fmt: skip
SMALL = "--num_samples {views} --bs 32 --emb 16 --head_size 32"
NO_EVALUATION = "--lr 3e-3 --eval_every 1000 --eval_every_drop 1000 --dataset cifar10"


def w_mse(name: str, epochs: int, steps: int, drops: tuple[int, int], warm_up: bool) -> Loop:
    """Return W-MSE's script: its warm-up has 500 steps or none."""
    arguments = f"{SMALL.format(views=2)} {NO_EVALUATION} --w_size 32 --epoch {epochs}"
    arguments += f" --drop {drops[0]} {drops[1]}" + ("" if warm_up else " --no_lr_warmup")
    optimizer = ADAM | {"drop_epochs_before_end": drops, "warmup_steps": 500 if warm_up else 0}
    config = {"loss": {"name": "w-mse", "sub_batch": 32}, "optimizer": optimizer, "epochs": epochs}
    return Loop(name, "w-mse", "train.py", arguments, config, steps)


def cw_rgp(name: str, epochs: int, steps: int, drops: tuple[int, int], warm_up: int) -> Loop:
    """Return CW-RGP's script for small images."""
    arguments = f"{SMALL.format(views=4)} {NO_EVALUATION} --w_size 4 --group 2 --epochs {epochs}"
    arguments += f" --drop {drops[0]} {drops[1]} --warmup_iters {warm_up}"
    optimizer = ADAM | {"drop_epochs_before_end": drops, "warmup_steps": warm_up}
    loss = {"name": "cw-rgp", "sub_batch": 4, "groups": 2}
    config = {"loss": loss, "optimizer": optimizer, "epochs": epochs, "num_views": 4}
    return Loop(name, "cw-rgp", "base/train.py", arguments, config, steps)


def imagenet(name: str, epochs: int, steps: int, stop: int, warm_up: int) -> Loop:
    """Return CW-RGP's script for ImageNet in one process; the covariance term ends at `stop`."""
    arguments = f"{SMALL.format(views=2)} -a resnet18 --w_size 4 --epochs {epochs} -j 0"
    arguments += f" --cov_w 0.005 --cov_stop {stop} --warmup_iters {warm_up} --imagenet_path ."
    loss = {
        "name": "cw-rgp", "sub_batch": 4, "groups": 2, "covariance_weight": 0.005,
        "covariance_batch": 32,
    }  # fmt: skip
    config = {"loss": loss, "optimizer": SGD | {"warmup_steps": warm_up}, "epochs": epochs}
    config |= {"layers": 3, "covariance_epochs": stop}
    return Loop(name, "cw-rgp", "ImageNet/train.py", arguments, config, steps)


LOOPS = (
    w_mse("W-MSE", 4, 3, (2, 1), warm_up=False),
    cw_rgp("CW-RGP", 4, 3, (2, 1), warm_up=4),
    imagenet("CW-RGP (ImageNet)", 4, 3, stop=4, warm_up=3),
)
SCHEDULES = (
    w_mse("W-MSE", 12, 60, (3, 2), warm_up=True),
    cw_rgp("CW-RGP", 12, 60, (3, 2), warm_up=500),
    imagenet("CW-RGP (ImageNet)", 12, 60, stop=6, warm_up=50),
    imagenet("CW-RGP (ImageNet), warm-up of several epochs", 12, 60, stop=6, warm_up=500),
)


def compare(paths: dict[str, Path], scratch: Path) -> list[Row]:
    """Return the rows of the loops, then of the schedules, of the code that is there."""
    rows = [row for loop in LOOPS if loop.peer in paths for row in loop_rows(loop, paths)]
    return rows + [
        row for loop in SCHEDULES if loop.peer in paths for row in schedule_rows(loop, paths)
    ]


def published(loop: Loop, paths: dict[str, Path], views: Tensor | None) -> dict[str, Any]:
    """Return what the published script does, with `views` or for its schedule alone."""
    script = paths[loop.peer].resolve() / loop.script
    inputs = {
        "script": str(script), "arguments": loop.arguments.split(), "views": views,
        "steps_per_epoch": loop.steps_per_epoch,
    }  # fmt: skip
    answer: dict[str, Any] = call(script.parent, "benchmarks.parity.training:theirs", inputs)
    return answer


def loop_rows(loop: Loop, paths: dict[str, Path]) -> list[Row]:
    """Return the rows of the steps, of the final state, and of what rounding decides in it."""
    config, total = loop.our_config, loop.length.total_steps
    shape = (total, config.num_views, config.batch_size, 3, 8, 8)
    views = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = published(loop, paths, views)
    ours = our_steps(loop, views, theirs)
    steps = [
        {**series("loss", side["losses"]), **series("learning rate", side["rates"])}
        for side in (theirs, ours)
    ]
    states = [renamed(theirs["final"]), ours["final"]]
    label = f"{loop.name}: {total} steps of {loop.script}"
    centred = [{key: state[key] for key in CENTRED_NEXT if key in state} for state in states]
    others = [{k: v for k, v in state.items() if k not in CENTRED_NEXT} for state in states]
    return [
        compare_tensors(
            ("training", f"{label}: losses and learning rates"), *steps, tolerance=TOLERANCE
        ),
        compare_tensors(("training", f"{label}: final state"), *others, tolerance=TOLERANCE),
        compare_tensors(
            ("training", f"{label}: final state that rounding decides"),
            *centred, tolerance=CENTRED_TOLERANCE,
        ),
    ]  # fmt: skip


def schedule_rows(loop: Loop, paths: dict[str, Path]) -> list[Row]:
    """Return the row of the learning rates, and of the covariance weight where there is one."""
    config, length = loop.our_config, loop.length
    theirs = published(loop, paths, None)
    total, peak = length.total_steps, config.optimizer.base_lr(config.batch_size)
    rates = [peak * lr_factor(step, length, config.optimizer) for step in range(total)]
    label = f"{loop.name}: {total} steps of {loop.script}"
    waiting = waiting_steps(config, length)
    tensors = [series("step", values) for values in (theirs["rates"], rates)]
    for side in tensors:
        for step in waiting:
            del side[f"step {step}"]
    row = compare_tensors(("schedules", f"{label}: learning rates"), *tensors, tolerance=1e-12)
    if waiting:
        steps = f"steps {waiting[0]} to {waiting[-1]} left out: {PEAK_KEPT}"
        row = dataclasses.replace(row, notes=(*row.notes, steps))
    rows = [row]
    if isinstance(config.loss, LossConfig) and config.loss.covariance_weight:
        weights = [covariance_weight(step, length, config) for step in range(total)]
        sides = [
            {f"weight before step {step}": value for step, value in enumerate(values)}
            for values in (theirs["covariance_weights"], weights)
        ]
        title = ("schedules", f"{label}: covariance weights")
        rows.append(compare_values(title, sides[0], sides[1], {}))
    return rows


def waiting_steps(config: PretrainConfig, length: Length) -> range:
    """Return the steps between the warm-up's end and the next epoch, of a cosine by the epoch.

    In the first epoch the cosine is 1, so there is nothing to wait for.
    """
    end, steps = config.optimizer.warmup_steps, length.steps_per_epoch
    by_epoch = config.optimizer.schedule == "cosine" and config.optimizer.lr_update == "epoch"
    return range(end, -(-end // steps) * steps) if by_epoch and end > steps else range(0)


def tiny_encoder() -> nn.Module:
    """Return what stands in for the ResNet."""

    def block(channels: int, width: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(*block(3, 8), *block(8, WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state under our names."""
    names = {"model.": "encoder.", "head.": "projector."}
    return {names[key.split(".")[0] + "."] + key.split(".", 1)[1]: v for key, v in state.items()}


def our_steps(loop: Loop, views: Tensor, theirs: dict[str, Any]) -> dict[str, Any]:
    """Return losses, learning rates and final state of our steps from their start and draws."""
    config, length = loop.our_config, loop.length
    model = SelfSupervisedModel(config.model)
    model.encoder, model.projector = tiny_encoder(), build_projector(WIDTH, config.model)
    model.double().load_state_dict(renamed(theirs["initial"]))
    loss: Any = build_loss(config.loss)
    optimizer = build_optimizer(model, config.optimizer)
    assert isinstance(config.loss, LossConfig) and config.loss.sub_batch is not None
    shape = (config.num_views, config.batch_size, config.model.embedding_dim)
    draws_per_step = len(theirs["draws"]) // length.total_steps
    answer: dict[str, Any] = {"losses": [], "rates": []}
    for step in range(length.total_steps):
        rate = config.optimizer.base_lr(config.batch_size)
        rate *= lr_factor(step, length, config.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss.covariance_weight = covariance_weight(step, length, config)
        drawn = theirs["draws"][step * draws_per_step : (step + 1) * draws_per_step]
        permutation, partition = split_draws(drawn, shape, config.loss.sub_batch, 1)
        optimizer.zero_grad()
        value = loss(
            model(views[step])[1], batch_permutation=permutation, channel_partition=partition
        )
        value.backward()
        optimizer.step()
        answer["losses"].append(float(value.detach()))
        answer["rates"].append(rate)
    return answer | {"final": model.state_dict()}


class Views:
    """What stands in for a loader: the same views in the same order, without labels."""

    def __init__(self, views: Tensor | None, steps_per_epoch: int) -> None:
        self.views, self.steps_per_epoch, self.step = views, steps_per_epoch, 0

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[list[Tensor], None]]:
        """Yield the next epoch."""
        for _ in range(self.steps_per_epoch):
            yield ([] if self.views is None else list(self.views[self.step])), None
            self.step += 1


class OneWeight(nn.Module):
    """What stands in for a model where only the schedule matters."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.cov_w, self.cov_stop = getattr(cfg, "cov_w", 0.0), getattr(cfg, "cov_stop", 0)
        self.has_epochs = hasattr(cfg, "cov_stop")

    def forward(self, _: object) -> Tensor:
        """Return a loss."""
        return self.weight.square()


def theirs(inputs: dict[str, Any]) -> dict[str, Any]:
    """In a child: run a published training script, and return what it did."""
    answer: dict[str, Any] = {"losses": [], "rates": [], "covariance_weights": []}
    networks: Any = importlib.import_module("model")
    networks.get_model = lambda *_: (tiny_encoder(), WIDTH)
    methods: Any = importlib.import_module("methods")
    kind_of = methods.get_method
    built: list[nn.Module] = []

    def before(model: nn.Module, _: object) -> None:
        answer["covariance_weights"].append(float(getattr(model, "cov_w", 0.0)))

    def after(_: object, __: object, loss: Tensor) -> None:
        answer["losses"].append(float(loss.detach()))

    def build(name: str) -> Any:
        def model_of(cfg: Any) -> nn.Module:
            model: nn.Module
            if inputs["views"] is None:
                model = OneWeight(cfg)
                # the published method's own rule for when the covariance term ends
                model.step = lambda progress: kind_of(name).step(model, progress)  # type: ignore[assignment]
            else:
                torch.manual_seed(0)
                model = kind_of(name)(cfg).double()
            built.append(model)
            answer["initial"] = {k: v.clone() for k, v in model.state_dict().items()}
            model.register_forward_pre_hook(before)
            model.register_forward_hook(after)
            return model

        return model_of

    methods.get_method = build
    give_views(Path(inputs["script"]).parent, Views(inputs["views"], inputs["steps_per_epoch"]))
    register_optimizer_step_pre_hook(
        lambda optimizer, *_: answer["rates"].append(float(optimizer.param_groups[0]["lr"]))
    )
    sys.argv = [inputs["script"], *inputs["arguments"]]
    with recorded_permutations() as draws:
        runpy.run_path(inputs["script"], run_name="__main__")
    return answer | {"final": built[0].state_dict(), "draws": draws}


def give_views(folder: Path, views: Views) -> None:
    """Make every way by which a script in `folder` gets its images lead to `views`."""
    data = type("Data", (), {"train": views, "clf": None, "test": None})
    loaders: Any = torch.utils.data
    loaders.DataLoader = lambda *_, **__: views
    folders: Any = torchvision.datasets
    folders.ImageFolder = lambda *_, **__: None
    if (folder / "datasets").is_dir():
        sets: Any = importlib.import_module("datasets")
        sets.get_ds = lambda _: lambda *__: data
