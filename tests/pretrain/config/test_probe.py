"""Settings of probes that are refused."""

from collections.abc import Callable

import pytest

from pretrain.config.probe import ProbeConfig


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"knn": None}, "measures nothing; give at least one of knn, weighted_knn"),
        ({"knn": {"k": 0}}, "greater than 0"),
        ({"image": {"size": 8, "resize": 7}}, "resize 7 is below size 8"),
        ({"linar": {}}, "Extra inputs"),
    ],
)
def test_config_faults(
    colours: Callable[..., ProbeConfig], change: dict[str, object], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        colours(**change)
