"""The wheel, from archives made here: what is refused, and what exactly comes out."""

import base64
import csv
import hashlib
import importlib.metadata
import io
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from transfer.detectron2_wheel import wheel
from transfer.detectron2_wheel.edits import ADDED, EDITS, EXTRAS, REQUIRES, Edit

FILES = {
    "detectron2/__init__.py": b'__version__ = "0.6"\n',
    "detectron2/layers/__init__.py": b"import numpy as np\nx = np.bool\ny = np.bool_\n",
    "detectron2/modeling/__init__.py": b"",
    "detectron2/model_zoo/configs/Base.yaml": b"A: 1\n",
    "LICENSE": b"Apache\n",
}
ALIAS = Edit("detectron2/layers/__init__.py", r"\bnp\.bool\b", "bool", "alias gone", regex=True)


def make_archive(path: Path, files: dict[str, bytes], extra: tarfile.TarInfo | None = None) -> str:
    """Writes a source archive under the folder name `pb1`; returns its sha256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"pb1/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if extra is not None:
            archive.addfile(extra, io.BytesIO(b"x" * extra.size))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "a.tar.gz"
    extra = {"setup.py": b"raise SystemExit(9)", "detectron2/notes.md": b"-", "tools/t.py": b"-"}
    return path, make_archive(path, FILES | extra)


def test_read_archive_keeps_the_package_and_the_licence_only(archive):
    assert wheel.read_archive(*archive) == FILES


def test_read_archive_compares_the_checksum_before_it_opens_the_archive(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"not an archive")
    found = hashlib.sha256(b"not an archive").hexdigest()
    with pytest.raises(ValueError, match=f"a.tar.gz: sha256 is {found}, wanted 5d2e9e51e5"):
        wheel.read_archive(path)
    with pytest.raises(ValueError, match=r"a\.tar\.gz: not a gzipped tar archive"):
        wheel.read_archive(path, found)


def test_read_archive_refuses_a_truncated_archive(archive, tmp_path):
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive[0].read_bytes()[:-40])
    sha256 = hashlib.sha256(cut.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="not a gzipped tar archive"):
        wheel.read_archive(cut, sha256)


@pytest.mark.parametrize(
    "name", ["pb1/../../detectron2/evil.py", "/detectron2/evil.py", "pb1\\..\\evil.py", ".."]
)
def test_read_archive_refuses_a_member_outside(tmp_path, name):
    path = tmp_path / "a.tar.gz"
    sha256 = make_archive(path, FILES, tarfile.TarInfo(name))
    with pytest.raises(ValueError, match="points out of the archive"):
        wheel.read_archive(path, sha256)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_read_archive_refuses_links_and_devices(tmp_path, kind):
    link = tarfile.TarInfo("pb1/detectron2/link.py")
    link.type, link.linkname = kind, "/etc/passwd"
    path = tmp_path / "a.tar.gz"
    sha256 = make_archive(path, FILES, link)
    with pytest.raises(ValueError, match=r"'pb1/detectron2/link\.py' is a link or a device"):
        wheel.read_archive(path, sha256)


def test_read_archive_wants_package_and_licence(tmp_path):
    path = tmp_path / "a.tar.gz"
    sha256 = make_archive(path, {"detectron2/other.py": b""})
    with pytest.raises(ValueError, match=r"no detectron2/__init__\.py, LICENSE in it"):
        wheel.read_archive(path, sha256)


def test_apply_edits_changes_the_stated_places_and_says_so_in_the_file():
    edited = wheel.apply_edits(FILES, [ALIAS], {"detectron2/new.py": "new\n"})
    assert edited["detectron2/layers/__init__.py"] == (
        b"import numpy as np\nx = bool\ny = np.bool_\n\n"
        b"# Changed from detectron2 v0.6: alias gone.\n"
    )
    untouched = FILES.keys() - {"detectron2/layers/__init__.py"}
    assert {name: edited[name] for name in untouched} == {name: FILES[name] for name in untouched}
    assert edited.keys() - FILES.keys() == {"detectron2/new.py"}


@pytest.mark.parametrize("places", [0, 2])
def test_apply_edits_counts(places):
    with pytest.raises(ValueError, match=f"__init__.py: .*matches 1 times, wanted {places}"):
        wheel.apply_edits(FILES, [ALIAS._replace(places=places)], {})


def test_apply_edits_wants_the_file_and_overwrites_none():
    with pytest.raises(ValueError, match=r"detectron2/gone\.py: not in the archive"):
        wheel.apply_edits(FILES, [ALIAS._replace(file="detectron2/gone.py")], {})
    with pytest.raises(ValueError, match=r"detectron2/__init__\.py: already in the archive"):
        wheel.apply_edits(FILES, [], {"detectron2/__init__.py": ""})


def test_build_wheel_uses_the_real_checksum_and_leaves_nothing_when_refusing(archive, tmp_path):
    with pytest.raises(ValueError, match="wanted 5d2e9e51e523ec72f6a31cca04b0a515492e9514"):
        wheel.build_wheel(archive[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wheel_contents(tmp_path):
    path = wheel.write_wheel(FILES, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [path]
    assert path.name == "detectron2-0.6+pure.1-py3-none-any.whl"
    with zipfile.ZipFile(path) as opened:
        contents = {name: opened.read(name) for name in opened.namelist()}
    info = "detectron2-0.6+pure.1.dist-info"
    assert list(contents) == [
        "detectron2/__init__.py",
        "detectron2/layers/__init__.py",
        "detectron2/model_zoo/configs/Base.yaml",
        "detectron2/modeling/__init__.py",
        f"{info}/METADATA",
        f"{info}/RECORD",
        f"{info}/WHEEL",
        f"{info}/licenses/LICENSE",
    ]
    assert contents[f"{info}/licenses/LICENSE"] == b"Apache\n"
    assert b"Root-Is-Purelib: true\nTag: py3-none-any\n" in contents[f"{info}/WHEEL"]
    rows = list(csv.reader(io.StringIO(contents[f"{info}/RECORD"].decode())))
    assert rows.pop() == [f"{info}/RECORD", "", ""]
    assert {row[0] for row in rows} == contents.keys() - {f"{info}/RECORD"}
    # sha256 of b'__version__ = "0.6"\n', 20 bytes, by sha256sum | xxd -r -p | basenc --base64url
    assert next(row for row in rows if row[0].endswith("2/__init__.py")) == [
        "detectron2/__init__.py",
        "sha256=ncKOhmMshkKH0hADIDc1EohSZbPVhx6HkN9Q9lGRlpc",
        "20",
    ]
    for name, digest, size in rows:
        assert_recorded(contents[name], digest, size)


def assert_recorded(data: bytes, digest: str, size: str) -> None:
    algorithm, _, value = digest.partition("=")
    raw = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    assert raw == hashlib.new(algorithm, data).digest()
    assert int(size) == len(data)


def test_wheel_bytes_do_not_depend_on_time_order_or_umask(tmp_path):
    one = wheel.write_wheel(FILES, tmp_path / "1").read_bytes()
    two = wheel.write_wheel(dict(reversed(FILES.items())), tmp_path / "2").read_bytes()
    assert one == two
    with zipfile.ZipFile(io.BytesIO(one)) as opened:
        assert {info.date_time for info in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.external_attr >> 16 for info in opened.infolist()} == {0o644}


def test_write_wheel_leaves_no_partial_file(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*detectron2-0\.6"):
        wheel.write_wheel(FILES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_metadata_states_name_version_requirements_and_every_edit():
    parsed = Parser().parsestr(wheel.metadata())
    assert (parsed["Name"], parsed["Version"]) == ("detectron2", "0.6+pure.1")
    assert "without the C++ part" in parsed["Summary"]
    required = parsed.get_all("Requires-Dist")
    assert required[:3] == ["torch>=2.0", "torchvision>=0.15", "numpy>=1.24"]
    assert len(required) == len(REQUIRES) + sum(len(packages) for packages in EXTRAS.values())
    assert 'hydra-core>=1.1; extra == "lazyconfig"' in required
    body = parsed.get_payload()
    for file in [edit.file for edit in EDITS] + list(ADDED):
        assert file in body


def test_pip_takes_the_wheel(tmp_path):
    path = wheel.write_wheel(FILES, tmp_path / "out")
    target = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(path)], check=True)
    found = list(importlib.metadata.distributions(name="detectron2", path=[str(target)]))
    assert [dist.version for dist in found] == ["0.6+pure.1"]
    assert (target / "detectron2/model_zoo/configs/Base.yaml").read_bytes() == b"A: 1\n"


def test_the_installed_build_is_what_its_record_says():
    try:
        dist = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("detectron2 is not installed")
    if dist.version != wheel.VERSION:
        pytest.skip(f"detectron2 {dist.version} is not the pure-Python build")
    recorded = [file for file in dist.files or [] if file.hash]
    assert len(recorded) > 250
    for file in recorded:
        if "dist-info" not in file.parts[0]:
            digest = f"{file.hash.mode}={file.hash.value}"
            assert_recorded(file.read_binary(), digest, str(file.size))
    for edit in EDITS:
        text = Path(str(dist.locate_file(edit.file))).read_text(encoding="utf-8")
        assert "# Changed from detectron2 v0.6: " in text
        assert edit.why in text
