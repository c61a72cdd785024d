"""What the tests of the examples share."""

import importlib
import pathlib

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports an example, which finds what it shares beside itself."""
    pytest.importorskip("tensorflow")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module
