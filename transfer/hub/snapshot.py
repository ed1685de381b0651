"""Checkpoints on the Hugging Face hub: fetched by its client, and told by commit. No torch."""

from __future__ import annotations

import re
import sys
from glob import escape
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from transfer.checkpoints.other_files import (
    OF_DETECTRON2,
    OF_STAGES,
    OF_TRANSFORMERS,
    ON_THE_HUB,
    WEIGHT_FILES,
    shards_of,
)
from transfer.files import one_line

NAME = r"[\w.-]+"
PLACE = re.compile(
    rf"hf:/{{1,2}}(?P<repo>{NAME}/{NAME})(?:@(?P<revision>[^/@\s]+))?(?:/(?P<file>[^\s@]+))?"
)
SNAPSHOT = re.compile(
    rf"(?:.*/)?models--(?P<repo>{NAME})/snapshots/(?P<commit>[0-9a-f]{{40}})(?P<file>/.*)?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
MOST = 1000  # files of a folder that are asked which commit they are of


def local_checkpoint(text: str) -> Path:
    """Return where a checkpoint lies on this machine; one on the hub is fetched into its cache.

    Args:
        text: a path, or `hf://ORG/NAME@REVISION`, `hf://ORG/NAME@REVISION/FILE`. The revision is a
            branch, tag or commit, `main` where it is left out; `/` in it is written `%2F`.

    Raises:
        ValueError: the hub has no such file, or there is no network, or no `huggingface_hub`.
    """
    if not text.startswith(ON_THE_HUB):
        return Path(text)
    match = PLACE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text}: wanted hf://ORG/NAME@REVISION, or with /FILE behind it")
    try:
        from huggingface_hub import utils  # noqa: PLC0415  (optional)
    except ImportError:
        raise ValueError(
            f"{text}: huggingface_hub is not installed: pip install huggingface_hub; or download "
            "the folder where it is, and give that"
        ) from None
    repo, revision = match["repo"], unquote(match["revision"] or "main")
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    utils.logging.set_verbosity_error()  # without a network: of each new attempt
    try:
        return _fetched(repo, revision, match["file"])
    except (OSError, ValueError) as error:
        raise ValueError(f"{text}: {_reason(error, repo, revision)}") from None


def _fetched(repo: str, revision: str, file: str | None) -> Path:
    """Return the weights in the local cache, all files beside them of the same commit.

    Raises:
        OSError: the hub cannot be reached, or has no such repository or revision.
        ValueError: that commit has no weights, or they cannot be fetched.
    """
    from huggingface_hub import hf_hub_download, snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        EntryNotFoundError,
        LocalEntryNotFoundError,
    )

    names: tuple[str, ...] = (*WEIGHT_FILES, *OF_STAGES) if file is None else (file,)
    below = (file or "").rpartition("/")[0]
    settings = [f"{below}/{name}".lstrip("/") for name in (*OF_TRANSFORMERS, *OF_DETECTRON2)]
    patterns = [*settings, ".gitattributes"]  # which every repository has
    folder = snapshot_download(repo, revision=revision, allow_patterns=patterns)
    commit, offline = Path(folder).name, False

    def fetch(name: str) -> Path | None:
        nonlocal offline
        try:
            return Path(hf_hub_download(repo, name, revision=commit, local_files_only=offline))
        except LocalEntryNotFoundError:
            offline = True  # one that is gone for a moment must not change what is taken
        except EntryNotFoundError:
            pass
        return None

    weights = next(filter(None, map(fetch, names)), None)
    if weights is None:
        why = ", and no network to fetch it" if offline else ""
        raise ValueError(
            f"no {', '.join(names)} in commit {commit}{why}; name the file: "
            f"hf://{repo}@{revision}/FILE"
        )
    for name in (*shards_of(weights), weights.with_suffix(".json").name):
        if Path(name).name == name:  # any other is refused where the index is read
            fetch(f"{below}/{name}".lstrip("/"))
    return weights


def _reason(error: Exception, repo: str, revision: str) -> str:
    """Return why something cannot be had from the hub, and what to do."""
    reasons = {
        "GatedRepoError": f"{repo} is gated: ask for access on its page, then hf auth login",
        "RepositoryNotFoundError": f"the hub has no {repo}, or it is private: hf auth login",
        "RevisionNotFoundError": f"{repo} has no revision {revision}",
        "LocalEntryNotFoundError": "no network, and it is not in the local cache; where there is "
        f"one: hf download {repo} --revision {revision} --local-dir FOLDER; then give that folder",
    }
    for kind in type(error).__mro__:
        if kind.__name__ in reasons:
            return reasons[kind.__name__]
    return one_line(error)[:250]


def revision_of(path: Path) -> str:
    """Return the commit that a local file or folder of the hub is of, empty for any other.

    It is in the path of the hub's cache, or in what `hf download --local-dir` leaves beside.
    """
    path = path.absolute()
    if match := SNAPSHOT.fullmatch(str(path)):
        return match["commit"]
    folder, name = (path, "*") if path.is_dir() else (path.parent, escape(path.name))
    commits = set()
    for file in islice(folder.glob(f".cache/huggingface/download/{name}.metadata"), MOST):
        with file.open("rb") as lines:
            commits.add(lines.readline(100).decode("ascii", "replace").strip())
    (commit,) = commits if len(commits) == 1 else ("",)
    return commit if COMMIT.fullmatch(commit) else ""


def place_of(path: Path) -> str:
    """Return what a checkpoint is called in a report: its name, or `hf://ORG/NAME@COMMIT/FILE`."""
    match = SNAPSHOT.fullmatch(str(path.absolute()))
    if match is None:
        return path.name
    return f"hf://{match['repo'].replace('--', '/', 1)}@{match['commit']}{match['file'] or ''}"
