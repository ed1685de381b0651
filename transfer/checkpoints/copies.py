"""Which encoder of a file is a slow copy of which other one, by their names.

Every project of the survey that keeps a momentum, target or key copy evaluates the other one.
Students and averages (EMA) stay out: which of the two is meant differs between projects.
"""

from __future__ import annotations

import re

COPIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"momentum_(\w+)", ("{}", "base_{}")),
    (r"(\w+)_momentum", ("{}",)),
    (r"target_(\w+)", ("{}", "online_{}")),
    (r"(\w+)_target", ("{}", "{}_online")),
    (r"teacher_(\w+)", ("{}",)),
    (r"key_(\w+)", ("{}", "query_{}")),
    (r"(\w+)_key", ("{}", "{}_query")),
    (r"k_(\w+)", ("q_{}",)),
    (r"(\w+)_k", ("{}", "{}_q")),
    (r"(\w+)_[mt]", ("{}",)),
    (r"(target)", ("online",)),
    (r"(key)", ("query",)),
)


def is_copy(copy: str, online: str) -> bool:
    """Return whether two dotted paths are equal but for one part, which names a copy.

    `model.momentum_encoder` is a copy of `model.encoder`.
    """
    pairs = list(zip(copy.split("."), online.split("."), strict=False))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    if copy.count(".") != online.count(".") or len(differing) != 1:
        return False
    second, first = differing[0]
    for pattern, forms in COPIES:
        match = re.fullmatch(pattern, second)
        if match is not None and first in [form.format(match[1]) for form in forms]:
            return True
    return False
