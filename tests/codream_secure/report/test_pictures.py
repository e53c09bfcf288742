"""Pictures of a run."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from codream_secure.report.pictures import draw_labels


@pytest.fixture
def figures(monkeypatch):
    """All figures that were saved."""
    saved = []
    save = Figure.savefig

    def remember(figure, *arguments, **options):
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


@pytest.mark.parametrize(("clients", "classes"), [(3, 2), (10, 10), (4, 100), (300, 47)])
def test_labels_are_dots_of_an_area_like_the_count(tmp_path, figures, clients, classes):
    counts = np.arange(clients * classes).reshape(clients, classes)
    draw_labels(counts, tmp_path / "labels.png")
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")
    (axis,) = figures[0].axes
    (dots,) = (item for item in axis.collections if isinstance(item, PathCollection))
    places = dots.get_offsets().astype(int)
    assert len(places) == (counts > 0).sum()
    areas = dots.get_sizes()
    np.testing.assert_allclose(
        areas / areas.max(), counts[places[:, 0], places[:, 1]] / counts.max()
    )
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("client", "class")


def test_the_title_says_whose_the_picture_is(tmp_path, figures):
    draw_labels(np.array([[1234, 0], [5, 6]]), tmp_path / "labels.png")
    title = figures[0].axes[0].get_title()
    assert "observer's" in title
    assert "epsilon" in title
    assert "1,234" in title
