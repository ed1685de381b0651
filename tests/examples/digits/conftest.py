"""The digits, drawn once for each file of tests."""

import pytest

from examples.digits.build import build_digits
from tests.examples.digits.small import SMALL


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    return root, build_digits(root, sizes=SMALL)
