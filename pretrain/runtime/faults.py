"""Words on why a run ends early, once for all its processes; imports torch only to agree.

Tested in tests/pretrain/test_train_faults.py.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import timedelta

from pretrain.runtime.signals import EXIT_INTERRUPTED


class DivergedError(ArithmeticError):
    """A loss or gradient is not finite, so the run cannot go on; its words are for the user."""


def tell_fault(text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Print why a run cannot go on: of torchrun's processes with the same words only the first.

    They agree in the store that torchrun keeps; where there is none, each speaks.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import (  # type: ignore[attr-defined]  # noqa: PLC0415
            DistNetworkError,
            TCPStore,
        )

        place = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        key = hashlib.sha256(text.encode()).hexdigest()
        try:
            store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=10))
            if store.add(f"fault/{key}", 1) > 1:
                return
        except DistNetworkError:
            pass
    print(text, file=sys.stderr, flush=True)


def tell_stopped() -> int:
    """Print how a run that was asked to stop goes on; return the exit code that says so."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        again = shlex.join(sys.orig_argv)
    else:
        again = "the same command, on as many processes"
    tell_fault(f"pretrain: stopped; go on with: {again}")
    return EXIT_INTERRUPTED
