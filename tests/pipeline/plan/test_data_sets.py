"""Which sets are checked for what."""

from pipeline.plan.data_sets import unused
from transfer.config.data import known_datasets


def test_unused_sets_are_measured_on_unless_the_field_trains_on_them() -> None:
    evaluated = {name for name, data in known_datasets().items() if unused(name, data).evaluated}
    assert evaluated == {"voc_2007_test", "coco_2017_val", "digits_voc_test", "digits_coco_val"}
