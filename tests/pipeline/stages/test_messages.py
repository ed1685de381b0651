"""Words of messages: text for a terminal, and what was meant by a name that is not known."""

from pathlib import Path

import pytest

from pipeline.plan.build import load_plan
from pipeline.stages.files import one_line, printable, unknown


def test_text_on_one_line_keeps_no_terminal_escape() -> None:
    assert one_line("out\n of\x1b[31m\tmemory\x00") == "out of [31m memory"
    assert one_line(OSError(28, "No space\nleft")) == "[Errno 28] No space left"
    assert one_line(KeyError()) == ""
    assert printable("é\x1b\n") == "é??"


def test_hints() -> None:
    assert unknown("task", "voz", ["voc", "coco"]) == (
        "unknown task 'voz'; did you mean 'voc'? known: voc, coco"
    )
    assert unknown("key", "time", ["save_s", "timeout_min"]).startswith(
        "unknown key 'time'; did you mean 'timeout_min'?"
    )
    assert unknown("task", "zzz", []) == "unknown task 'zzz'; known: none"


def test_an_unknown_key_is_told_with_the_nearest_one(project: Path) -> None:
    with pytest.raises(ValueError, match="unknown key") as error:
        load_plan(
            Path("configs/tiny.yaml"), ["backbones.1.pretrian=a.yaml", "datasets.my_coco.image=x"]
        )
    lines = str(error.value).splitlines()
    assert lines[0].startswith(
        "configs/tiny.yaml: backbones.1.pretrian: unknown key 'pretrian'; did you mean 'pretrain'?"
    )
    assert any("unknown key 'image'; did you mean 'images'?" in line for line in lines)


@pytest.mark.parametrize("kind", ["default", "pretrain", "finetune", "report"])
@pytest.mark.parametrize(
    ("key", "near"), [("gpu", "gpus"), ("time", "timeout_min"), ("timeout", "timeout_min")]
)
def test_every_kind_of_resources_knows_its_keys(
    project: Path, kind: str, key: str, near: str
) -> None:
    with pytest.raises(ValueError, match="unknown key") as error:
        load_plan(Path("configs/tiny.yaml"), [f"resources.{kind}.{key}=1"])
    assert f"resources.{kind}.{key}: unknown key {key!r}; did you mean {near!r}? known: gpus, " in (
        str(error.value)
    )
