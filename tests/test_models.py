"""The models that come with the library."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_neumeta as nm


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_every_width_of_a_resnet_morphs(shortcut):
    model = nm.models.cifar_resnet(8, shortcut=shortcut)
    graph = nm.trace(model)
    assert [g.name for g in graph.groups if not g.morphable] == ["head_dense"]
    half = nm.cut(model, 0.5)
    assert half.get_layer("stage3_block0_conv2").filters == 32
    assert half.get_layer("stage2_block0_conv1").filters == 16
    assert half(np.zeros((1, 32, 32, 3))).shape == (1, 10)


def test_resnet_depths():
    for depth in (8, 20):
        convolutions = [
            layer
            for layer in nm.models.cifar_resnet(depth, shortcut="pad").layers
            if isinstance(layer, keras.layers.Conv2D)
        ]
        assert len(convolutions) == depth - 1
    with pytest.raises(ValueError, match="6 n"):
        nm.models.cifar_resnet(21)
    with pytest.raises(ValueError, match="'conv' or 'pad'"):
        nm.models.cifar_resnet(20, shortcut="none")


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"stem.conv.kernel": np.zeros((3, 3, 3, 16))})
    with pytest.raises(ValueError, match="does not fit"):
        nm.models.cifar_resnet(8, weights=path)


def pretrained():
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder:
        pytest.skip("needs pretrained weights: TFDS_DATA_DIR is not set")
    path = Path(folder).parent / "resnet20_cifar10.npz"
    if not path.exists():
        pytest.skip("needs pretrained weights beside TFDS_DATA_DIR")
    return path


@pytest.mark.tensorflow  # Reads its data there, and is the same elsewhere.
def test_pretrained_resnet20_reaches_its_accuracy():
    path = pretrained()
    tfds = pytest.importorskip("tensorflow_datasets")
    x, y = tfds.as_numpy(
        tfds.load(
            "cifar10",
            split="test[:1000]",
            data_dir=os.environ["TFDS_DATA_DIR"],
            download=False,
            batch_size=-1,
            as_supervised=True,
        )
    )
    model = nm.models.cifar_resnet(20, shortcut="pad", weights=path)
    smoothed = nm.smooth(model, effort=0)
    for network in (model, smoothed):
        logits = network.predict(x / np.float32(255), verbose=0)
        assert np.mean(logits.argmax(-1) == y) > 0.9


def test_lenet_has_the_published_shape():
    model = nm.models.lenet()
    assert model.count_params() == 104_202
    assert len(nm.trace(model).morphable_groups) == 3
