"""The study of collapse: PCA loses dimensions, ZCA and Cholesky keep them."""

import pytest

from examples.collapse import follow_training, plot_collapse


@pytest.fixture(scope="module")
def curves():
    return {
        method: [follow_training(method, seed=0, num_steps=120, period=60)]
        for method in ("zca", "cholesky", "pca")
    }


def test_pca_loses_dimensions_where_zca_and_cholesky_keep_them(curves):
    first, last = ({method: runs[0][i] for method, runs in curves.items()} for i in (0, -1))
    kept = {
        m: last[m]["embedding/effective_rank"] / first[m]["embedding/effective_rank"] for m in last
    }
    assert kept["zca"] > 0.9
    assert kept["cholesky"] > 0.9
    assert kept["pca"] < 0.8
    stable = {m: last[m]["embedding/stable_rank"] for m in last}
    assert stable["pca"] < min(stable["zca"], stable["cholesky"])
    for method in ("zca", "cholesky"):  # the output is white all the while
        assert last[method]["whitened/normalized_stable_rank"] > 0.99


def test_every_method_starts_alike_and_runs_repeat(curves):
    ranks = {runs[0][0]["embedding/effective_rank"] for runs in curves.values()}
    assert max(ranks) == pytest.approx(min(ranks))
    again = follow_training("zca", seed=0, num_steps=60, period=60)
    assert again[-1]["loss"] == pytest.approx(curves["zca"][0][1]["loss"], rel=1e-2)


def test_the_plot_is_written(curves, tmp_path):
    plot_collapse(curves, tmp_path / "collapse.png")
    assert (tmp_path / "collapse.png").read_bytes().startswith(b"\x89PNG")
