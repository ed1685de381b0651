"""docs/architecture.md names files and folders that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pretrain", "transfer", "pipeline")
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_file_of_the_journeys_is_there() -> None:
    journeys = TEXT.partition("## Five journeys")[2].partition("\n## ")[0]
    files = [str(path) for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    names = re.findall(r"`([a-z_]+(?:/[a-z0-9_]+)*)`", journeys)
    absent = [name for name in names if not any(file.endswith(f"/{name}.py") for file in files)]
    assert len(names) > 50 and not absent


def test_the_tables_name_every_folder_and_every_file_at_the_top() -> None:
    for package in PACKAGES:
        table = TEXT.partition(f"| {package}/ | |")[2].partition("\n\n")[0]
        parts = [path for path in (ROOT / package).iterdir() if not path.name.startswith("__")]
        cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
        named = set(re.findall(r"`([\w.]+)/?`", " ".join(cells)))
        assert named == {path.name for path in parts}
