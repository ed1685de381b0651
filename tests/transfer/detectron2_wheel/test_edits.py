"""Edits of text, and the module that stands in for the C++ part."""

import pytest

from transfer.detectron2_wheel.edits import WITHOUT_CPP, Edit


def test_apply_edits_takes_text_literally_unless_told():
    literal = Edit("f", "a.c(", r"\1.", "")
    assert literal.apply("abc( a.c(") == r"abc( \1."


def test_placeholder_raises_on_use_not_on_import():
    namespace: dict[str, object] = {}
    exec(WITHOUT_CPP, namespace)
    with pytest.raises(NotImplementedError, match="box_iou_rotated is in the C\\+\\+ part"):
        namespace["_C"].box_iou_rotated(None, None)
    assert not hasattr(namespace["_C"], "__wrapped__")  # introspection goes on working
