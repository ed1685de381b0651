"""`get_data`: every set from a server to its readers, and killed anywhere on the way."""

import io
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.commands.get_data import DOWNLOADS, get_data
from pipeline.downloads import download
from pipeline.downloads.published_sets import SETS
from pipeline.stages.run_folder import lock
from pretrain.config.data import DataConfig
from pretrain.data.images import open_images
from tests.pipeline.archive_server import Server, published_here, serve, write_archives
from tests.scripts import load_script
from tests.source import ROOT

Usage = namedtuple("Usage", "total used free")
# A child is killed before its n-th touch of files or sockets, n from 1 on, until one comes through.
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import encodings.idna  # urllib's, that its import is no touch
from rich.console import Console
from pipeline.commands.get_data import get_data
from tests.pipeline.archive_server import published_here

def get():
    get_data(["voc2007", "cifar10"], Path("data"), Console(quiet=True), mirror={url!r}, sets=SETS)

def child(last):
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, arguments):
            nonlocal count
            if event.startswith(("open", "os.", "shutil.", "socket.")):
                count += 1
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        get()
        os._exit(0)
    return os.waitpid(pid, 0)[1]

SETS = published_here(Path("home"))
get()
names = sorted(str(path) for path in Path("data").rglob("*"))
killed = 0
while True:
    os.system("rm -rf data")
    if child(killed + 1) == 0:
        break
    killed += 1
    get()
    assert sorted(str(path) for path in Path("data").rglob("*")) == names, killed
print(killed)
"""

# A child is killed when 4,000 bytes are in its file.
CUT = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from rich.console import Console
from rich.progress import Progress
from pipeline.commands.get_data import get_data
from pipeline.downloads import download
from tests.pipeline.archive_server import published_here

download.BLOCK = 1000
def kill(progress, task, completed):
    completed < 4000 or os.kill(os.getpid(), signal.SIGKILL)
Progress.update = kill
sets = published_here(Path("home"))
get_data(["voc2012"], Path("data"), Console(quiet=True), mirror={url!r}, sets=sets)
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    write_archives(tmp_path / "home")
    with serve(tmp_path / "home") as server:
        yield server


@pytest.fixture
def get(server: Server) -> Callable[..., str]:
    """Return a call that gets sets from the server into `data` and returns what was printed."""

    def call(*names: str, keep_archives: bool = False) -> str:
        output = io.StringIO()
        get_data(
            names,
            Path("data"),
            Console(file=output),
            mirror=f"{server.url}/",
            keep_archives=keep_archives,
            sets=published_here(server.folder),
        )
        return output.getvalue()

    return call


def names_in(*parts: str) -> list[str]:
    return sorted(path.name for path in Path(*parts).iterdir())


def test_every_set_is_taken_by_its_readers(get, monkeypatch, capsys) -> None:
    sizes = get()
    assert [line.partition(":")[0].strip() for line in sizes.splitlines()] == list(SETS)
    assert not Path("data").exists()
    shown = get(*SETS)
    assert shown.index("are free") < shown.index("from http") and shown.count(": done") == 9
    assert names_in("data", DOWNLOADS) == ["lock"]
    for data_format, root, split, count in (
        ("cifar10", "data", "train", 5), ("cifar10", "data", "test", 2),
        ("cifar100", "data", "train", 5), ("cifar100", "data", "test", 2),
        ("stl10", "data", "pretrain", 7), ("stl10", "data", "test", 2),
        ("imagefolder", "data/tiny-imagenet-200", "train", 2),
        ("imagefolder", "data/tiny-imagenet-200", "test", 2),
    ):  # fmt: skip
        config = DataConfig(name="x", root=Path(root), format=data_format)
        images = open_images(config, split)
        assert len(images) == count and images.read(0).shape[0] == 3
        assert split == "pretrain" or images.labels.unique().numel() == count
    sets = {
        f"voc{year}_{split}": {
            "format": "voc", "root": f"data/VOC{year}", "split": split, "class_names": ["cat"]
        }
        for year, split in ((2007, "trainval"), (2007, "test"), (2012, "trainval"))
    } | {
        f"coco_{split}": {
            "format": "coco", "images": f"data/coco/{split}2017",
            "annotations": f"data/coco/annotations/instances_{split}2017.json",
        }
        for split in ("train", "val")
    }  # fmt: skip
    tasks = {
        "voc": {"TRAIN": ["voc2007_trainval", "voc2012_trainval"], "TEST": ["voc2007_test"]},
        "coco": {"TRAIN": ["coco_train"], "TEST": ["coco_val"]},
    }
    for name, data in tasks.items():
        task = {"DATASETS": data, "MODEL": {"MASK_ON": name == "coco"}}
        Path(f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")
    plan = {
        "name": "x", "backbones": [{"name": "none", "random": True}], "seeds": [0],
        "datasets": sets, "tasks": [{"name": name, "config": f"{name}.yaml"} for name in tasks],
    }  # fmt: skip
    Path("plan.yaml").write_text(json.dumps(plan), encoding="utf-8")
    arguments = ["check_data", *sets, "--config-file", "plan.yaml", "--decode", "all"]
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        assert load_script("check_data").main() == 0
    finally:
        logging.disable(logging.NOTSET)  # which the script sets for its process
    assert capsys.readouterr().out.count(": sound") == 5


def test_killed_before_any_touch_of_a_file_and_run_again(server: Server, tmp_path: Path) -> None:
    script = KILLED.format(root=str(ROOT), url=server.url)
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) > 80


def test_killed_in_the_middle_of_a_file_it_goes_on_there(server: Server, get, tmp_path) -> None:
    script = CUT.format(root=str(ROOT), url=server.url)
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == -signal.SIGKILL
    assert "11-May-2012.tar, from byte 4,000 on" in get("voc2012")
    name = "VOCtrainval_11-May-2012.tar"
    assert server.log == [(name, 0, 200), (name, 4000, 206)]


def test_without_a_terminal_a_line_says_every_tenth_how_far_it_is(get, monkeypatch) -> None:
    monkeypatch.setattr(download, "BLOCK", 700)
    lines = [line for line in get("stl10").splitlines() if " of " in line]
    sizes = [line.partition(": ")[2].partition(", ")[0] for line in lines]
    here, _, whole = sizes[-1].partition(" of ")
    assert len(set(sizes)) == 10 and here == whole


def test_what_is_there_stays_and_is_not_fetched_again(server: Server, get) -> None:
    get("cifar10", "cifar10", keep_archives=True)
    assert [name for name, _, _ in server.log] == ["cifar-10-python.tar.gz"]
    archive = Path("data", DOWNLOADS, "cifar-10-python.tar.gz")
    assert archive.is_file()
    assert "is there already" in get("cifar10") and not archive.exists()
    assert len(server.log) == 1


def test_archives_that_somebody_put_there_are_taken(server: Server, get) -> None:
    Path("data", DOWNLOADS).mkdir(parents=True)
    shutil.copy(server.folder / "stl10_binary.tar.gz", Path("data", DOWNLOADS))
    assert "stl10_binary.tar.gz: here\n" in get("stl10")
    assert server.log == [] and Path("data/stl10_binary/train_X.bin").is_file()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Path("data/VOC2007/JPEGImages").mkdir(parents=True),
            "is there without Annotations, Image",
        ),
        (lambda: Path("data/VOC2007").write_text("", "utf-8"), "is there and no folder"),
        (lambda: Path("data/VOC2007").symlink_to("nowhere"), "is there and no folder"),
    ],
)
def test_half_a_set_of_somebody_else_is_refused(server: Server, get, make, words: str) -> None:
    Path("data").mkdir()
    make()
    with pytest.raises(ValueError, match=rf"data/VOC2007: {words}.*; move it away"):
        get("cifar10", "voc2007")
    assert server.log == [] and len(names_in("data")) == 1


def test_a_folder_of_two_sets_and_an_empty_place(get) -> None:
    Path("data/coco/train2017").mkdir(parents=True)
    Path("data/coco/annotations").mkdir()
    Path("data/coco/annotations/instances_train2017.json").write_text("{}", "utf-8")
    Path("data/coco/annotations/instances_val2017.json").write_text("{}", "utf-8")
    get("coco2017")
    assert Path("data/coco/annotations/instances_val2017.json").read_text("utf-8") == "{}"
    assert len(names_in("data/coco/train2017")) == 2 and len(names_in("data/coco")) == 3


@pytest.mark.parametrize(("free", "fits"), [(2_000_000, False), (2_100_000, True)])
def test_too_small_a_disk_is_refused_before_anything_begins(
    server: Server, get, monkeypatch, free: int, fits: bool
) -> None:
    """Two sets of 1 MB each; archives of the first are gone when the second comes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))
    if fits:
        get("cifar10", "cifar100")
        return
    with pytest.raises(ValueError, match=r"data: 2.0 MB are needed at most, 2.0 MB are free; make"):
        get("cifar10", "cifar100")
    assert server.log == [] and not Path("data").exists()


def test_an_archive_without_the_set_leaves_nothing(server: Server, get) -> None:
    shutil.copy(server.folder / "cifar-10-python.tar.gz", server.folder / "cifar-100-python.tar.gz")
    with pytest.raises(ValueError, match="holds no cifar-100-python, cifar-100-python/train, cif"):
        get("cifar100")
    assert names_in("data") == [DOWNLOADS]


def test_one_at_a_time_and_bad_names(get) -> None:
    Path("data", DOWNLOADS).mkdir(parents=True)
    with lock(Path("data", DOWNLOADS, "lock")), pytest.raises(ValueError, match=r"data: process "):
        get("cifar10")
    with pytest.raises(
        ValueError, match="unknown data set 'cifar'; did you mean 'cifar10'"
    ) as error:
        get("cifar", "voc")
    assert "unknown data set 'voc'" in str(error.value)
    with pytest.raises(ValueError, match=r"--mirror file:///x: wanted a URL that begins with http"):
        get_data(["cifar10"], Path("data"), Console(quiet=True), mirror="file:///x")


def test_the_script_says_what_is_wrong_in_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    script = load_script("get_data")
    assert script.main(["voc2008", "--to", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("get_data: unknown data set 'voc2008'; did you mean")
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert script.main(["cifar10", "--to", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "get_data", interrupt)
    assert script.main(["cifar10"]) == 130
