"""Polygons must fill to exactly the mask that they were traced from."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from examples.digits.polygons import mask_to_polygons

# pycocotools 2.0.11 under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def fill(polygons, height, width):
    runs = coco_mask.frPyObjects(polygons, height, width)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def test_one_pixel_is_its_own_square_shifted():
    (polygon,) = mask_to_polygons(np.ones((1, 1), dtype=bool), x=5, y=7)
    corners = set(zip(polygon[::2], polygon[1::2], strict=True))
    assert len(polygon) == 8
    assert corners == {(5, 7), (6, 7), (6, 8), (5, 8)}


def test_an_l_has_six_corners():
    (polygon,) = mask_to_polygons(np.array([[1, 0], [1, 1]], dtype=bool))
    corners = set(zip(polygon[::2], polygon[1::2], strict=True))
    assert len(polygon) == 12
    assert corners == {(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (0, 2)}


def test_a_ring_is_one_polygon_of_signed_area_eight():
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    (polygon,) = mask_to_polygons(ring)
    x, y = np.array(polygon[::2]), np.array(polygon[1::2])
    assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2 == 8
    assert len(polygon) == 2 * (4 + 4 + 2)  # outline, hole, and both ends of the bridge again
    assert np.array_equal(fill([polygon], 3, 3), ring)


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    polygons = mask_to_polygons(np.eye(2, dtype=bool))
    assert sorted(len(polygon) for polygon in polygons) == [8, 8]


def test_a_part_inside_the_hole_of_another_keeps_its_own_hole():
    target = np.zeros((9, 9), dtype=bool)
    for inset, value in ((0, True), (1, False), (2, True), (3, False)):
        target[inset : 9 - inset, inset : 9 - inset] = value
    polygons = mask_to_polygons(target)
    assert len(polygons) == 2
    areas = sorted(int(fill([polygon], 9, 9).sum()) for polygon in polygons)
    assert areas == [25 - 9, 81 - 49]


@pytest.mark.parametrize("density", [0.3, 0.6, 0.9])
def test_filling_gives_any_mask_back(density):
    rng = np.random.default_rng(int(density * 10))
    for _ in range(200):
        height, width = rng.integers(1, 14, 2)
        mask = rng.random((height, width)) < density
        if mask.any():
            expected = np.zeros((height + 4, width + 6), dtype=bool)
            expected[3 : 3 + height, 2 : 2 + width] = mask
            polygons = mask_to_polygons(mask, x=2, y=3)
            assert np.array_equal(fill(polygons, height + 4, width + 6), expected)
