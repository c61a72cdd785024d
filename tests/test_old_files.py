"""Hypermodels that were saved by any version and backend load on all.

`python tests/test_old_files.py` writes the file of the current version and
of the backend that `KERAS_BACKEND` names.
"""

import pathlib
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta as nm
from keras_neumeta.serialization import FILE_VERSION

DATA = pathlib.Path(__file__).parent / "data"
FILES = sorted(DATA.glob("hyper_v*.keras"))
RATIOS = (1.0, 0.6, 0.25)


def images():
    # `RandomState`, as its numbers are the same in every NumPy version.
    return np.random.RandomState(0).normal(size=(8, 6, 6, 1)).astype("float32")


def hypermodel():
    """A trained one with something of all that is saved."""
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(8, 3, padding="same", name="inner")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="sum")([x, y]))
    x = layers.Dropout(0.2, seed=1)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    hyper = nm.ManifoldHyperModel(
        model,
        field=nm.AnchoredField(levels=(0.5,)),
        min_depth=0,
        reconstruction=0.1,
        seed=0,
    )
    hyper.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    hyper.fit(images(), np.arange(8) % 3, batch_size=4, verbose=0)
    return hyper


def morphed(hyper):
    """Weights and outputs of some sizes, `{name: array}`."""
    values = {}
    for ratio in RATIOS:
        small = hyper.morph(ratio)
        outputs = small(images(), training=False)
        values[f"{ratio}_outputs"] = ops.convert_to_numpy(outputs)
        for variable in small.weights:
            value = ops.convert_to_numpy(variable)
            values[f"{ratio}_{variable.path.replace('/', '_')}"] = value
    return values


def compress(file):
    """Keras does not: most of a small file is zeros."""
    with zipfile.ZipFile(file) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, value in content.items():
            new.writestr(name, value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file_of_any_version_and_backend(file):
    hyper = keras.saving.load_model(file)
    with np.load(file.with_suffix(".npz")) as expected:
        values = morphed(hyper)
        assert set(values) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(
                values[name], value, atol=1e-5, err_msg=name
            )


def test_current_version_has_its_files():
    current = [x for x in FILES if x.stem.startswith(f"hyper_v{FILE_VERSION}_")]
    assert len(current) == 3
    assert all(file.stat().st_size < 100_000 for file in FILES)


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    file = DATA / f"hyper_v{FILE_VERSION}_{keras.backend.backend()}.keras"
    hyper = hypermodel()
    hyper.save(file)
    compress(file)
    np.savez_compressed(file.with_suffix(".npz"), **morphed(hyper))
