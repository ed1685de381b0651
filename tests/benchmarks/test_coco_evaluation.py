"""The benchmark of the evaluators runs and prints."""

import pytest

from benchmarks.coco_evaluation import benchmark_evaluation


def test_the_benchmark_prints_both_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_evaluation(images=4, detections=5, mask_images=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[2:]] == [["bbox", "4", "20"], ["segm", "3", "15"]]
