"""Settings of the stage `convert`. Torch-free.

Tested in tests/transfer/test_convert.py.
"""

from __future__ import annotations

from transfer.config.data import Section


class ConvertConfig(Section):
    """How a checkpoint is read; both fields are recognised from its content when left out."""

    format: str | None = None
    encoder: str | None = None
