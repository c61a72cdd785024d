"""Export of morphed networks, by Keras' own `export`."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import ManifoldHyperModel


@pytest.fixture
def small():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    return ManifoldHyperModel(model).morph(ratio=0.5)


def images():
    random = np.random.default_rng(0)
    return random.normal(size=(2, 6, 6, 1)).astype("float32")


@pytest.mark.tensorflow
@pytest.mark.jax  # From PyTorch, Keras needs torch_xla for a SavedModel.
def test_saved_model(small, tmp_path):
    tf = pytest.importorskip("tensorflow")
    small.export(tmp_path / "small", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "small")
    np.testing.assert_allclose(
        ops.convert_to_numpy(small(images())),
        loaded.serve(images()).numpy(),
        atol=1e-5,
    )


@pytest.mark.tensorflow
@pytest.mark.jax
def test_path_that_is_a_file(small, tmp_path):
    path = tmp_path / "file"
    path.write_text("kept")
    with pytest.raises(Exception, match="(?i)exists|not a directory"):
        small.export(path, verbose=False)
    assert path.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_format(small, tmp_path):
    with pytest.raises(ValueError, match="(?i)format"):
        small.export(tmp_path / "small", format="unknown", verbose=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorflow
@pytest.mark.jax  # PyTorch brings its own exporter, which warns first.
@pytest.mark.skipif(
    any(map(importlib.util.find_spec, ["tf2onnx", "jax2onnx", "onnxscript"])),
    reason="the packages for ONNX are installed",
)
def test_format_without_its_packages(small, tmp_path):
    small(images())  # Keras asks for a call before this format.
    with pytest.raises(ImportError, match="(?i)onnx"):
        small.export(tmp_path / "small.onnx", format="onnx", verbose=False)
    assert list(tmp_path.iterdir()) == []
