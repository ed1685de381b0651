"""Checkpoints on a hub: one served here, its local cache, and folders that were downloaded."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests.source import ROOT
from tests.transfer.published import hugging_face, resnet
from transfer.checkpoints.read import read_backbone
from transfer.convert import check_stage, convert_checkpoint
from transfer.hub.snapshot import local_checkpoint, place_of, revision_of

COMMIT, OLDER = "0123456789abcdef" * 2 + "01234567", "fedcba98" * 5
CONFIG = json.dumps({"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5] * 3,
                     "std": [0.25] * 3}}).encode()  # fmt: skip
FETCH = "import sys; from transfer.hub.snapshot import local_checkpoint; "
FETCH += "print(local_checkpoint(sys.argv[1]))"


class Hub:
    """What a hub serves: files by repository and commit, and every path that was asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[str] = []

    def env(self, home: Path, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT),
                       "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
                       "no_proxy": "127.0.0.1"} | more  # fmt: skip

    def fetch(self, place: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", FETCH, place]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.env(home, **env)
        )

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a path, as the hub's own API has them."""
        parts = path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        if repo == "org/gated":
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if repo not in self.files:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commit = {"main": COMMIT, "v1": OLDER}.get(rest[1], rest[1])
        files = self.files[repo].get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if rest[0] == "revision":
            listed = [{"rfilename": name} for name in files]
            content: Any = {"id": repo, "sha": commit, "siblings": listed}
        elif rest[0] == "tree":
            content = [{"type": "file", "path": name, "size": len(raw), "oid": "0" * 40}
                       for name, raw in files.items()]  # fmt: skip
        elif (raw := files.get("/".join(rest[2:]))) is not None:
            etag = f'"{abs(hash(raw)):040x}"'
            return 200, {"ETag": etag, "X-Repo-Commit": commit}, raw
        else:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        body = json.dumps(content).encode()
        return 200, {"Content-Type": "application/json"}, body


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = served.answer(self.path)
            served.asked.append(self.path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Hub(f"http://127.0.0.1:{server.server_port}")
    timm, halves = save(resnet()), hugging_face(resnet())
    where = {name: f"model-0000{1 + index % 2}-of-00002.safetensors"
             for index, name in enumerate(halves)}  # fmt: skip
    shards = {file: save({name: halves[name] for name in halves if where[name] == file})
              for file in set(where.values())}  # fmt: skip
    index = json.dumps({"weight_map": where}).encode()
    common = {".gitattributes": b"", "config.json": CONFIG}
    served.files["org/timm"] = {
        COMMIT: common | {"model.safetensors": timm, "pytorch_model.bin": b"not fetched"},
        OLDER: common | {"model.safetensors": save(resnet() | {"bn1.bias": torch.ones(64)})},
    }
    served.files["org/shards"] = {
        COMMIT: {".gitattributes": b"", "config.json": b'{"model_type": "resnet"}',
                 "model.safetensors.index.json": index} | shards
    }  # fmt: skip
    served.files["org/files"] = {
        COMMIT: {".gitattributes": b"", "old/moco.safetensors": timm, "old/config.json": CONFIG,
                 "README.md": b"# nothing"}
    }  # fmt: skip
    evil = json.dumps({"weight_map": {"a": "../../../evil", "b": "/etc/passwd"}}).encode()
    served.files["org/evil"] = {
        COMMIT: {".gitattributes": b"", "model.safetensors.index.json": evil}
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield served
    server.shutdown()
    server.server_close()


def test_a_checkpoint_is_converted_and_its_commit_recorded(hub: Hub, tmp_path: Path) -> None:
    """Online by the branch, then without network from the cache, by branch and by commit."""
    target, tool = tmp_path / "timm.pkl", str(ROOT / "tools" / "convert_to_detectron2.py")
    command = [sys.executable, tool, "hf://org/timm", str(target)]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, env=hub.env(tmp_path)
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    companion = json.loads(target.with_suffix(".json").read_text("utf-8"))
    place = f"hf://org/timm@{COMMIT}/model.safetensors"
    assert (companion["source"], companion["revision"]) == (place, COMMIT)
    assert companion["input"]["pixel_mean"] == [127.5] * 3  # of the config beside the weights
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    for source, env in (
        ("hf://org/timm@main", {"HF_HUB_OFFLINE": "1"}),
        (f"hf://org/timm@{COMMIT}", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ):
        answer = hub.fetch(source, tmp_path, **env)
        assert place_of(Path(answer.stdout.strip())) == place, answer.stderr


def test_a_revision_is_another_checkpoint(hub: Hub, tmp_path: Path) -> None:
    answer = hub.fetch("hf://org/timm@v1", tmp_path)
    path = Path(answer.stdout.strip())
    assert revision_of(path) == OLDER and place_of(path) == f"hf://org/timm@{OLDER}/{path.name}"
    assert float(read_backbone(path).state_dict["bn1.bias"].sum()) == 64
    assert path.is_symlink() and read_backbone(path.parent).arch == "resnet18"
    assert revision_of(path.parent) == OLDER and place_of(path.parent) == f"hf://org/timm@{OLDER}"


def test_shards_and_files_by_name(hub: Hub, tmp_path: Path) -> None:
    path = Path(hub.fetch("hf://org/shards", tmp_path).stdout.strip())
    assert path.name == "model.safetensors.index.json"
    wanted = resnet()
    state = read_backbone(path).state_dict
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    path = Path(hub.fetch("hf://org/files@main/old/moco.safetensors", tmp_path).stdout.strip())
    assert place_of(path) == f"hf://org/files@{COMMIT}/old/moco.safetensors"
    assert (path.parent / "config.json").read_bytes() == CONFIG
    assert read_backbone(path).arch == "resnet18"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("hf://org/none", "the hub has no org/none, or it is private: hf auth login"),
        ("hf://org/gated", "org/gated is gated: ask for access on its page"),
        ("hf://org/timm@v9", "org/timm has no revision v9"),
        (
            "hf://org/files",
            f"pytorch_model.bin.*in commit {COMMIT}; name the file: hf://org/files@",
        ),
        ("hf://org/timm/none.pth", f"no none.pth in commit {COMMIT}; name the file"),
        ("hf://org", "wanted hf://ORG/NAME@REVISION, or with /FILE behind it"),
        ("hf://org/timm@a b", "wanted hf://ORG/NAME@REVISION"),
        ("hf://org/evil", ""),
    ],
)
def test_what_the_hub_has_not_is_one_line(
    hub: Hub, place: str, expected: str, tmp_path: Path
) -> None:
    answer = hub.fetch(place, tmp_path)
    if not expected:  # what an index names outside of its folder is neither asked for nor read
        assert not any("evil" in path.rpartition("/")[2] for path in hub.asked)
        with pytest.raises(ValueError, match="is not beside it"):
            read_backbone(Path(answer.stdout.strip()))
        return
    line = answer.stderr.strip().splitlines()[-1]
    assert answer.returncode == 1 and line.startswith(f"ValueError: {place}: ")
    assert re.search(expected, line), line


@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_the_line_says_how_to_bring_it(
    env: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    line = hub.fetch("hf://org/timm@v1", tmp_path, **env).stderr.strip().splitlines()[-1]
    assert "no network, and it is not in the local cache; where there is one: hf download " in line
    assert "org/timm --revision v1 --local-dir FOLDER; then give that folder" in line


def test_the_client_does_not_log_each_of_its_attempts(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import logging, sys; from transfer.hub.snapshot import local_checkpoint\n"
        "try: local_checkpoint('hf://org/timm@v1')\n"
        "except ValueError: logging.getLogger('huggingface_hub.utils._http').warning('Retrying')"
    )
    env = hub.env(tmp_path, HF_HUB_OFFLINE="1")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env)
    assert run.stderr == b""


def test_without_the_library_the_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"huggingface_hub is not installed: pip install"):
        local_checkpoint("hf://org/timm@main")
    assert local_checkpoint("weights/a.pth") == Path("weights/a.pth")


def test_a_folder_that_was_downloaded_keeps_its_commit(tmp_path: Path) -> None:
    """As `hf download --local-dir` leaves it, symbolic links into blobs, and a folder of no hub."""
    folder = tmp_path / "local"
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(save(resnet()))
    assert revision_of(folder) == ""
    (notes / "model.safetensors.metadata").write_text(f"{OLDER}\netag\n1.0\n", encoding="ascii")
    assert revision_of(folder) == revision_of(folder / "model.safetensors") == OLDER
    report = convert_checkpoint(folder, tmp_path / "a.pkl")
    assert (report.source, report.revision) == ("local", OLDER)
    (notes / "config.json.metadata").write_text("another\netag\n1.0\n", encoding="ascii")
    assert revision_of(folder) == ""

    snapshot = tmp_path / "models--org--my--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").symlink_to("../../blobs/0f")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a link to nothing; download"):
        read_backbone(snapshot)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    torch.save(resnet(), blobs / "0f")
    report = convert_checkpoint(snapshot, tmp_path / "b.pkl")
    assert (report.source, report.revision) == (f"hf://org/my--name@{COMMIT}", COMMIT)


def test_who_takes_files_alone_says_how_to_have_one() -> None:
    with pytest.raises(
        ValueError, match=r"^hf:/org/timm@v1: is on the Hugging Face hub, which only"
    ):
        read_backbone(Path("hf://org/timm@v1"))
    faults = check_stage({"checkpoint": "hf:/org/timm@v1"})
    assert len(faults) == 1 and "hf download ORG/NAME --revision COMMIT" in faults[0]
