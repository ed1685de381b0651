"""The page: what it shows, what it escapes, and that it needs nothing else."""

import re
from dataclasses import replace
from html.parser import HTMLParser

from PIL import Image

from pipeline.report.data import Curve, ReportData, summarise
from pipeline.report.html import finetuning_keys, html, picture_uri, pretraining_keys
from pipeline.report.text import provenance
from tests.pipeline.report.cases import EVIL, VOC, case, paper_case, row


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text):
        self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_page_shows_numbers_failures_and_provenance():
    text = Page(html(case())).text
    for part in (
        "28.0 ± 1.4 +11.5 ± 0.7",
        "Failed cw-rgp, seed 1: out of memory (log: runs/demo/log.txt)",
        "1 of 8 fine-tunings failed",
        "1 of 8 fine-tunings from modified (uncommitted) code",
        "torch 2.14.1",
        "pretrain 1 h 02 min",
        "run_pipeline.py run",
    ):
        assert part in text.replace(" ", " ")


def test_page_escapes_names_and_reasons():
    data = replace(case(ours=EVIL, reason=f'{EVIL}" onload="x'), pipeline=EVIL, command=EVIL)
    data = replace(data, provenance={EVIL: {EVIL: EVIL}, "deep": {"a": [EVIL]}})
    text = html(data)
    page = Page(text)
    assert "<script" not in text
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert EVIL in page.text


def test_page_needs_no_network(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    data = case()
    rows = [replace(r, pictures=(tmp_path / "1.jpg",)) for r in data.rows]
    text = html(replace(data, rows=tuple(rows)))
    attributes = [(name, value) for _, attrs in Page(text).tags for name, value in attrs.items()]
    sources = [value for name, value in attributes if name == "src"]
    links = [value for name, value in attributes if name.split(":")[-1] == "href"]
    assert sources
    assert all(value.startswith("data:image/") for value in sources)
    assert links
    assert all(value.startswith("#") for value in links)
    assert all(url.startswith("#") for url in re.findall(r"url\(\s*['\"]?([^)]*)", text))
    assert "@import" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_ids_of_the_plots_stay_apart():
    ids = [a["id"] for _, a in Page(html(case())).tags if "id" in a]
    assert len(ids) > 20
    assert len(ids) == len(set(ids))


def test_pictures_stand_under_their_ground_truth(tmp_path):
    for folder in ("gt", "random", "ours"):
        (tmp_path / folder).mkdir()
        for name in ("a.jpg", "b.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "gt" / "a.jpg", comment="2 zero,\n<b>")
    (tmp_path / "ours" / "b.png").write_bytes(b"no picture")

    def paths(folder, *names):
        return tuple(tmp_path / folder / name for name in names)

    truth = paths("gt", "a.jpg", "b.png")
    data = case()
    rows = (
        row("random", VOC, 0, (), status="failed", pictures=paths("random", "a.jpg")),
        row(
            "random",
            VOC,
            1,
            (1, 1, 1),
            pictures=paths("random", "b.png", "a.jpg"),
            ground_truth=truth,
        ),
        row(
            "cw-rgp",
            VOC,
            0,
            (1, 1, 1),
            pictures=paths("ours", "a.jpg", "b.png"),
            ground_truth=truth,
        ),
    )
    page = Page(html(replace(data, rows=rows)))
    found = [a.get("alt") or f"absent: {a['aria-label']}" for _, a in page.tags
             if "alt" in a or a.get("class") == "absent"]  # fmt: skip
    assert found == [
        "Ground truth, picture 1 of 2: 2 zero, <b>",
        "Ground truth, picture 2 of 2: b.png",
        "Detections of random, seed 1, picture 1 of 2: a.jpg",
        "Detections of random, seed 1, picture 2 of 2: b.png",
        "Detections of cw-rgp, seed 0, picture 1 of 2: a.jpg",
        "absent: Detections of cw-rgp, seed 0, picture 2 of 2: b.png",
    ]


def test_plots_say_in_words_what_is_seen():
    """Values of every bar, the ends of every curve."""
    points = ({"step": 1, "loss": 2.5}, {"step": 9, "loss": 0.5})
    data = case()
    task = data.finetuning[0].task
    curves = [Curve("", "random", task, seed, points) for seed in range(14)]
    data = replace(data, finetuning=tuple(curves))
    labels = [a["aria-label"] for tag, a in Page(html(data)).tags if tag == "svg"]
    assert "Box AP50: random 31.0 ± 1.4, cw-rgp 51.5 ± 2.1" in labels
    assert "Mask AP: random 8.5 ± 0.7, cw-rgp not measured" in labels
    ends = ", ".join(f"random, seed {seed} 2.5 to 0.5" for seed in range(12))
    assert f"loss over steps: {ends}, and 2 more" in labels
    one = replace(data, finetuning=(replace(curves[0], points=points[:1]),))
    labels = [a["aria-label"] for tag, a in Page(html(one)).tags if tag == "svg"]
    assert "loss over steps: random, seed 0 2.5" in labels


def test_empty_report_renders():
    empty = ReportData("demo", (), (), None, (), (), (), (), {}, "run")
    assert "demo" in Page(html(empty)).text
    assert summarise(empty) == ()
    planned = replace(case(), rows=(), probes=(), pretraining=(), finetuning=())
    assert "no finished result" in Page(html(planned)).text


def test_many_classes_are_rows_so_that_paper_and_phones_hold_them():
    data = paper_case()
    classes = {f"bbox/AP-c{number}": 40.0 + number for number in range(5)}  # beside cat and dog
    rows = tuple(replace(row, metrics=row.metrics | classes) for row in data.rows)
    folded = html(replace(data, rows=rows)).partition("By class")[2]
    assert folded.index("</span>random</th>") < folded.index("</span>ours</th>")
    spread = "<td>44.0 ± 0.0</td>"
    assert f'<tr><th scope="row">Box c4</th>{spread * 2}</tr>' in folded
    assert 'scope="row">Box cat' not in html(data)  # two are columns


def test_page_holds_the_command_and_config_of_every_row():
    text = html(paper_case())
    assert "git checkout abc\nrun --only x" in text
    assert "&#34;key&#34;: &#34;value&#34;" in text
    assert "GPU hours of fine-tuning" in text and "128.0" in text  # 8 runs x 2 h x 8 GPUs
    assert 'class="published"' in text


def test_fine_tunings_that_backbones_share_count_once_in_the_sums():
    data = paper_case()
    ours = [row for row in data.rows if row.backbone == data.backbones[-1]]
    again = tuple(replace(row, backbone="again") for row in ours)
    shared = replace(data, rows=(*data.rows, *again), backbones=(*data.backbones, "again"))
    assert provenance(shared) == provenance(data)


def test_picture_uri_tells_the_type_by_content_and_shrinks(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "png.jpg", format="PNG")
    assert picture_uri(tmp_path / "png.jpg").startswith("data:image/png;base64,")
    Image.effect_noise((2000, 1500), 80).save(tmp_path / "large.png")
    assert len(picture_uri(tmp_path / "large.png")) < (tmp_path / "large.png").stat().st_size / 4
    (tmp_path / "evil.svg").write_text("<svg onload='x'/>", encoding="utf-8")
    assert picture_uri(tmp_path / "evil.svg") is None
    assert picture_uri(tmp_path / "absent.jpg") is None


def test_keys_of_the_curves_have_an_order():
    keys = ["effective_rank", "iter_time", "knn/top1", "loss", "lr"]
    assert pretraining_keys(keys) == (["loss", "effective_rank", "knn/top1"], ["iter_time", "lr"])
    keys = ["bbox/AP", "bbox/AP50", "loss_cls", "lr", "total_loss"]
    shown = ["total_loss", "bbox/AP50", "bbox/AP"]
    assert finetuning_keys(keys, ("bbox/AP50", "bbox/AP")) == (shown, ["loss_cls", "lr"])
