"""Real data that a test needs, and is skipped without."""

import os
from pathlib import Path

import pytest


def prepared(name):
    """The folder of the data sets, where this one needs no download."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder:
        pytest.skip(f"needs {name}: TFDS_DATA_DIR is not set")
    if not any(Path(folder, name).glob("*/dataset_info.json")):
        pytest.skip(f"needs {name}: TFDS_DATA_DIR has no prepared {name}")
    pytest.importorskip("tensorflow_datasets")
    return folder


def beside(name):
    """The path of a file beside the prepared data sets."""
    folder = os.environ.get("TFDS_DATA_DIR")
    path = folder and Path(folder).parent / name
    if not path or not path.exists():
        pytest.skip(f"needs {name} beside TFDS_DATA_DIR")
    return str(path)
