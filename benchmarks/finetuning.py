"""CPU seconds of one fine-tuning of the demo by part, its start and its end included."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.rows import Table, print_rows
from examples.digits.build import Sizes, build_digits
from pipeline.config.yaml_files import load_yaml
from transfer.config.data import KNOWN_DATASETS
from transfer.config.finetune import FinetuneConfig

TASK = Path(__file__).resolve().parents[1] / "configs" / "transfer" / "digits_faster_rcnn_voc.yaml"
REST = "the rest"
SIZES = Sizes(unlabeled=8, train_crops=20, val_crops=20)  # all scenes
# A part, and what it is spent in: a module, and an attribute of it or of a class in it. What is
# spent in a part within another counts for the inner one.
PARTS = (
    ("checks of the config", "transfer.finetune", "build_cfg"),
    ("sets read and packed", "transfer.detection.trainer", "build_loader"),
    ("sets read and packed", "transfer.finetune", "class_faults"),
    ("detector built", "transfer.detection.trainer", "Trainer.build_model"),
    ("weights loaded and compared", "transfer.detection.trainer", "Trainer.resume_or_load"),
    ("weights loaded and compared", "transfer.detection.run", "check_loaded"),
    ("weights loaded and compared", "transfer.finetune", "check_companion"),
    ("settings told, digests of the inputs", "transfer.detection.run", "tell_settings"),
    ("images read and augmented", "transfer.detection.loader", "ImageMapper.__call__"),
    ("backward", "torch", "Tensor.backward"),
    ("optimiser", "torch.optim", "AdamW.step"),
    ("precise BN", "detectron2.engine.hooks", "PreciseBN.update_stats"),
    ("evaluation without its forward passes", "transfer.detection.trainer", "Trainer.test"),
    ("checkpoints", "detectron2.checkpoint", "DetectionCheckpointer.save"),
    ("pictures", "transfer.finetune", "write_pictures"),
)
FORWARD = {True: "forward", False: "forward of the evaluation"}  # by whether it trains


@dataclass
class Clock:
    """CPU seconds by part; what runs within another part counts for the inner one."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    parts: list[str] = field(default_factory=lambda: [REST])
    since: float = field(default_factory=time.process_time)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count a block for a part."""
        self._switch()
        self.parts.append(name)
        try:
            yield
        finally:
            self._switch()
            self.parts.pop()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self.parts[-1]] += now - self.since
        self.since = now

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return a function whose time counts for a part."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return timed


def benchmark_finetuning(*, steps: int = 200) -> list[Table]:
    """Print the parts of a fine-tuning from converted weights, the dearest first."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_digits(folder / "digits", sizes=SIZES)
        clock.since = time.process_time()
        with clock.part("imports"):
            finetune: Any = importlib.import_module("transfer.finetune")
        weights = _weights(folder)
        clock.since = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), measured_parts(clock):
            finetune.finetune(_config(folder, steps), weights, folder / "run")
        with clock.part(REST):
            pass
    whole = sum(clock.seconds.values())
    rows = sorted(clock.seconds.items(), key=lambda row: -row[1])
    table = [(part, cpu, cpu / whole) for part, cpu in [*rows, ("all", whole)]]
    title = f"{TASK.name}, {steps} iterations"
    return [print_rows(title, ("part", "CPU s:.2f", "share:.1%"), table)]


def _config(folder: Path, steps: int) -> FinetuneConfig:
    content = load_yaml(TASK)
    content["SOLVER"]["MAX_ITER"] = steps
    names = [name for listed in content["DATASETS"].values() for name in listed]
    sets = {name: KNOWN_DATASETS[name].under(folder) for name in names}
    return FinetuneConfig(detectron2=content, datasets=sets)


def _weights(folder: Path) -> Path:
    """Return converted weights of a ResNet-18 that nobody trained."""
    torch, models = (importlib.import_module(name) for name in ("torch", "torchvision.models"))
    convert: Any = importlib.import_module("transfer.convert")
    source, target = folder / "resnet18.pth", folder / "resnet18.pkl"
    torch.save(models.resnet18(weights=None).state_dict(), source)
    convert.convert_checkpoint(source, target)
    return target


@contextlib.contextmanager
def measured_parts(clock: Clock) -> Iterator[None]:
    """Time what `PARTS` names and the detector's passes while the block runs."""
    with contextlib.ExitStack() as stack:
        for part, module, path in PARTS:
            owner: Any = importlib.import_module(module)
            *classes, name = path.split(".")
            for each in classes:
                owner = getattr(owner, each)
            before = inspect.getattr_static(owner, name)
            is_class_method = isinstance(before, classmethod)
            timed: Any = clock.around(before.__func__ if is_class_method else before, part)
            timed = classmethod(timed) if is_class_method else timed
            stack.enter_context(mock.patch.object(owner, name, timed))
        detector: Any = importlib.import_module("detectron2.modeling").GeneralizedRCNN
        forward = detector.forward

        def passed(self: Any, *arguments: Any) -> Any:
            with clock.part(FORWARD[self.training]):
                return forward(self, *arguments)

        stack.enter_context(mock.patch.object(detector, "forward", passed))
        yield
