"""Identities are taken from run folders where data are not there, and from no other."""

from dataclasses import replace
from pathlib import Path

from pipeline.plan.recorded import MISSING, as_recorded
from pipeline.stages.files import write_json
from pipeline.stages.run_folder import CONFIG
from pipeline.stages.stage import Stage


def pretraining(root: Path, slug: str, **identity: object) -> Stage:
    return Stage(kind="pretrain", slug=slug, identity=identity, settings={}, root=root)


def test_what_could_not_be_read_is_as_the_equal_folder_has_it(tmp_path: Path) -> None:
    made = pretraining(tmp_path, "a", lr=0.1, data={"digest": "1"})
    made.run_dir.mkdir(parents=True)
    write_json(made.run_dir / CONFIG, made.record)
    unread = replace(made, identity={"lr": 0.1, "data": {MISSING: True}})
    more = replace(made, identity={**unread.identity, "part of later versions": {MISSING: True}})
    other = replace(unread, identity={"lr": 0.2, "data": {MISSING: True}})
    read = pretraining(tmp_path, "a", lr=0.1, data={"digest": "2"})
    again, still_other, still_read = (as_recorded([s], tmp_path)[0] for s in (unread, other, read))
    assert again.signature == made.signature == as_recorded([more], tmp_path)[0].signature
    assert still_other.identity == other.identity and still_read.identity == read.identity
