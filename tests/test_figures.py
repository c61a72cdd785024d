"""What draws."""

import sys

import pytest

from keras_neumeta.figures import new_figure


def test_notebooks_can_show_a_figure():
    figure = new_figure("A test", (2.0, 1.0))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert tuple(figure.get_size_inches()) == (2.0, 1.0)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError, match=r"A test needs .*keras_neumeta\[plot"
    ):
        new_figure("A test", (2.0, 1.0))
