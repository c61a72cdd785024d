"""A training that was killed ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import ManifoldHyperModel

EPOCHS, STEPS, BATCH_SIZE = 3, 4, 8


def make():
    """With all that draws random numbers or remembers something."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            # A bias has no gradient here but rounding, which Adam enlarges.
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.3, seed=1),
            layers.Dense(3),
        ]
    )
    hyper = ManifoldHyperModel(model, sampler="independent", noise=1.0, seed=3)
    hyper.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return hyper


def examples():
    random = np.random.default_rng(0)
    number = STEPS * BATCH_SIZE
    x = random.normal(size=(number, 6, 6, 1)).astype("float32")
    return x, random.integers(0, 3, number)


def fit(hyper, *callbacks, data=None, **options):
    return hyper.fit(
        *(data or examples()),
        batch_size=BATCH_SIZE,
        shuffle=False,  # Keras keeps no order of the data.
        callbacks=list(callbacks),
        verbose=0,
        **{"epochs": EPOCHS, **options},
    )


def backups(folder):
    return [
        keras.callbacks.BackupAndRestore(
            folder / "epochs", double_checkpoint=True
        ),
        keras.callbacks.BackupAndRestore(folder / "steps", save_freq=5),
    ]


class Kill(keras.callbacks.Callback):
    """Kills this process after the third step of the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 2):
            os.kill(os.getpid(), signal.SIGKILL)


def assert_same_state(hyper, expected):
    """All that the training has learned and drawn, to the last bit."""
    state = [*hyper.variables, *hyper.optimizer.variables]
    other = [*expected.variables, *expected.optimizer.variables]
    for v, w in zip(state, other, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(v), ops.convert_to_numpy(w), v.path
        )


def assert_same(hyper, expected):
    """The same, and the losses of the last epoch."""
    assert_same_state(hyper, expected)
    ends = [
        {name: values[-1] for name, values in each.history.history.items()}
        for each in (hyper, expected)
    ]
    assert ends[0] == ends[1]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A training without a break, and its checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    hyper = make()
    checkpoint = keras.callbacks.ModelCheckpoint
    fit(
        hyper,
        checkpoint(folder / "{epoch}.keras"),
        checkpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
    )
    return hyper, folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The backups of a training that was killed."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, __file__, folder],
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": keras.backend.backend()},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


@pytest.fixture
def folder(killed, tmp_path):
    """A copy: Keras deletes backups when the training has ended."""
    shutil.copytree(killed, tmp_path / "killed")
    return tmp_path / "killed"


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_training_resumes_from_the_epoch(folder, unbroken, damaged):
    path = folder / "epochs" / "latest.weights.h5"
    if damaged:
        # As if killed while this was written: there is the one before it.
        path.write_bytes(path.read_bytes()[:1000])
    hyper = make()
    history = fit(hyper, backups(folder)[0]).history
    assert len(history["loss"]) == (2 if damaged else 1)
    assert_same(hyper, unbroken[0])


def test_killed_training_resumes_from_the_step(folder, unbroken):
    """Keras begins the epoch anew: it is given what is left of the data."""
    metadata = json.loads(
        (folder / "steps" / "training_metadata.json").read_text()
    )
    assert metadata == {"epoch": 2, "batch": 1}
    seen = (metadata["batch"] + 1) * BATCH_SIZE
    hyper = make()
    fit(hyper, backups(folder)[1], data=[part[seen:] for part in examples()])
    assert_same_state(hyper, unbroken[0])


@pytest.mark.parametrize("kind", ["keras", "weights.h5"])
def test_training_goes_on_from_a_checkpoint(kind, unbroken):
    expected, folder = unbroken
    path = folder / f"1.{kind}"
    if kind == "keras":
        hyper = keras.saving.load_model(path)
    else:
        hyper = make()
        # Keras loads the state of an optimizer only if there is one.
        hyper.optimizer.build(hyper.trainable_variables)
        hyper.load_weights(path)
    fit(hyper, initial_epoch=1)
    assert_same(hyper, expected)


if __name__ == "__main__":
    from pathlib import Path

    fit(make(), *backups(Path(sys.argv[1])), Kill())
