"""Several devices learn what one does, in processes of their own.

Devices are set up before a backend starts: `python
tests/test_several_devices.py ...` runs the example with the network of this
test and prints its losses.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_neumeta as nm

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


# Made before the devices are set up: only a hypermodel has variables.
SAMPLER = nm.Sandwich(num_fixed=2, bands=1, seed=0)


def make(seed=0, norms=None, sampler=SAMPLER):
    """A hypermodel with every term of the loss, and statistics."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(4, 5, strides=4, activation="relu"),
            *(statistics() if norms is None else norms),
            layers.Conv2D(8, 3, strides=2, kernel_regularizer="l2"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    hyper = nm.ManifoldHyperModel(
        model,
        sampler=sampler,
        distillation_loss=keras.losses.mean_absolute_error,
        reconstruction=1.0,
        weight_norm=1e-3,
        noise=1.0,
        seed=seed,
    )
    hyper.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return hyper


def statistics():
    """Batch norm over the whole batch, which JAX computes by itself."""
    if keras.backend.backend() == "torch":
        return []  # Keras has none of several processes of PyTorch.
    synchronized = keras.backend.backend() == "tensorflow"
    return [layers.BatchNormalization(synchronized=synchronized)]


def start(folder, *arguments, **environment):
    """Runs the example with this network."""
    environment["KERAS_BACKEND"] = keras.backend.backend()
    done = subprocess.run(
        [sys.executable, __file__, "--quick", "--dataset", "digits"]
        + ["--output", folder, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr


def run(folder, *arguments):
    """The losses of the example with this network."""
    start(folder, *arguments)
    history = json.loads((folder / "history.json").read_text())
    small = keras.saving.load_model(folder / "quarter.keras")
    return history, small.get_weights()


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    pytest.importorskip("sklearn")
    return run(tmp_path_factory.mktemp("one"))


def assert_same(results, expected):
    history, weights = results
    assert "val_loss@0.25" in history
    for name, values in expected[0].items():
        np.testing.assert_allclose(
            history[name], values, rtol=1e-4, err_msg=name
        )
    for value, other in zip(weights, expected[1], strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-3, atol=1e-4)


# PyTorch takes a process per device; Keras cannot with several processes of
# TensorFlow.
SEVERAL = {
    "tensorflow": ("--devices", "2"),
    "jax": ("--devices", "8"),
    "torch": ("--processes", "2"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        SEVERAL[keras.backend.backend()],
        pytest.param(("--processes", "2"), marks=pytest.mark.jax),
    ],
    ids=" ".join,
)
def test_devices_learn_what_one_does(arguments, one_device, tmp_path):
    assert_same(run(tmp_path, *arguments), one_device)


@pytest.mark.slow
@pytest.mark.torch  # The only one that copies a process to the others.
def test_processes_agree_whatever_their_seeds(tmp_path):
    pytest.importorskip("sklearn")
    start(tmp_path, "--processes", "2", UNEQUAL=str(tmp_path))
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    assert len(first.files) > 10
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def run_unequal(example, folder):
    """Trains with batch norm, another seed in each process; saves all."""
    from torch import distributed

    made = []

    def make_unequal():
        norms = [layers.BatchNormalization()]
        seed = distributed.get_rank()
        sampler = nm.Sandwich(num_fixed=2, bands=1, seed=seed)
        made.append(make(seed, norms, sampler))
        return made[0]

    example.make = make_unequal
    example.main()
    if made:
        values = [*made[0].get_weights(), *made[0].morph(0.5).get_weights()]
        path = pathlib.Path(folder, f"{distributed.get_rank()}.npz")
        np.savez(path, *values)


if __name__ == "__main__":
    # Where the example finds its neighbours.
    sys.path.insert(0, str(EXAMPLES))
    specification = importlib.util.spec_from_file_location(
        "example", EXAMPLES / "several_devices.py"
    )
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    if "UNEQUAL" in os.environ:
        run_unequal(example, os.environ["UNEQUAL"])
    else:
        example.make = make
        example.main()
