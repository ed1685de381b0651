import math

import pytest
from PIL import Image

from pipeline.report.html import finetuning_keys, pretraining_keys
from pipeline.report.pictures import picture_uri
from pipeline.report.provenance import Entry, duration, entry
from pipeline.report.text import metric_label, number, one_line


def test_picture_uri_tells_the_type_by_content_and_shrinks(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "png.jpg", format="PNG")
    assert picture_uri(tmp_path / "png.jpg").startswith("data:image/png;base64,")
    Image.effect_noise((2000, 1500), 80).save(tmp_path / "large.png")
    assert len(picture_uri(tmp_path / "large.png")) < (tmp_path / "large.png").stat().st_size / 4
    (tmp_path / "evil.svg").write_text("<svg onload='x'/>", encoding="utf-8")
    assert picture_uri(tmp_path / "evil.svg") is None
    assert picture_uri(tmp_path / "absent.jpg") is None


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(None, "–"), (math.nan, "–"), (0.4, "0 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")],
)
def test_duration(seconds, wanted):
    assert duration(seconds) == wanted


def test_provenance_entries_by_depth():
    assert entry("dirty", True) == Entry("dirty", text="yes")
    assert entry("wall_time_s", {"a": 61}) == Entry("wall time", pairs=(("a", "1 min 01 s"),))
    assert entry("hardware", {"gpu": None}) == Entry("hardware", pairs=(("gpu", "–"),))
    assert entry("c", {"a": {"b": 1}}).folded == '{\n  "a": {\n    "b": 1\n  }\n}'


def test_keys_of_the_curves_have_an_order():
    keys = ["effective_rank", "iter_time", "knn/top1", "loss", "lr"]
    assert pretraining_keys(keys) == (["loss", "effective_rank", "knn/top1"], ["iter_time", "lr"])
    keys = ["bbox/AP", "bbox/AP50", "loss_cls", "lr", "total_loss"]
    shown = ["total_loss", "bbox/AP50", "bbox/AP"]
    assert finetuning_keys(keys, ("bbox/AP50", "bbox/AP")) == (shown, ["loss_cls", "lr"])


def test_labels_and_numbers():
    assert metric_label("bbox/AP50") == "Box AP50"
    assert metric_label("segm/AP") == "Mask AP"
    assert metric_label("knn/top1") == "knn/top1"
    assert (number(-1.25, 1), number(-0.04, 1), number(None, 1)) == ("−1.2", "0.0", "–")


def test_one_line_drops_terminal_escapes():
    assert one_line("out\n of\x1b[31m\tmemory\x00") == "out of [31m memory"
