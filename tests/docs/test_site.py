"""The documentation site is built without a warning, and shows and fetches nothing of elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = (
    "pretrain.losses.WMSELoss", "pretrain.losses.CWRGPLoss", "pretrain.whitening.whiten",
    "pretrain.indicators.spectrum_indicators", "pretrain.probes.linear.fit_linear",
    "pretrain.probes.knn.Neighbours", "pretrain.train.pretrain",
    "transfer.checkpoints.read.read_backbone", "transfer.convert.convert_checkpoint",
    "transfer.finetune.finetune", "transfer.detection.evaluation.coco_ap",
    "pipeline.plan.build.load_plan",
)  # fmt: skip


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(folder)]
    answer = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_built_and_fetches_nothing(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        html = (site / f"{page.stem}.html").read_text("utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"(.*?)\"", html)
        assert fetched and not [address for address in fetched if "//" in address], page
        assert "<!-- {" not in html


@pytest.mark.slow
def test_the_dozen_public_names_are_shown_with_their_docstrings(site: Path) -> None:
    html = (site / "api.html").read_text("utf-8")
    assert [name for name in PUBLIC if f'id="{name}"' not in html] == []


def test_the_api_page_has_an_example_of_each() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    examples = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for name in PUBLIC:
        module, _, function = name.rpartition(".")
        assert re.search(rf"from {module} import .*\b{function}\b", examples), name
        assert f":: {name}\n" in text, name
