"""
Title: Backends and devices
Description: TensorFlow, JAX, PyTorch; precision; long trainings; many devices.
"""

"""
## One library, three backends

Keras runs on TensorFlow, JAX or PyTorch, and so does this library. The code of
the other guides is the same on all of them, but that PyTorch has no
`small.export(path)` for a SavedModel: `nm.export(small, path)` writes it from
every backend. This guide is about what differs.

## Choose the backend

Before Keras is imported, by the environment variable `KERAS_BACKEND`, or for
good by `"backend"` in `~/.keras/keras.json`. It cannot be changed later in the
same process.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_neumeta as nm

sys.path.append("../examples")  # Run this in the folder `guides`.
from mnist_lenet import load_data

QUICK = "GUIDES_QUICK" in os.environ  # Little data: to see that all runs.
FOLDER = pathlib.Path("outputs/backends_and_devices")
shutil.rmtree(FOLDER, ignore_errors=True)
FOLDER.mkdir(parents=True)

keras.utils.set_random_seed(0)
print(f"Keras {keras.version()} on {keras.backend.backend()}, seed 0")
_, (x, y), (x_test, y_test) = load_data("digits")
number = 64 if QUICK else 1024
x, y = x[:number], y[:number]

"""
A small dense network on the digits of scikit-learn is enough here.
"""


def make():
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="hidden1"),
            keras.layers.Dense(32, activation="relu", name="hidden2"),
            keras.layers.Dense(10, name="classes"),
        ],
        name="digits",
    )
    sampler = nm.Switches((1.0, 0.25)) if QUICK else "sandwich"
    hyper = nm.ManifoldHyperModel(network, sampler=sampler, seed=0)
    hyper.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        run_eagerly=QUICK,
    )
    return hyper


hyper = make()
hyper.fit(x, y, batch_size=64, verbose=2)

"""
## Files go across

What is saved under one backend loads under the others: the weights of the
field, the statistics, the optimizer, the state of the sampler. Here the file is
opened in a process of its own under each of the others, morphed, and trained
on.
"""

hyper.save(FOLDER / "hyper.keras")
expected = hyper.morph(ratio=0.5).predict(x_test, verbose=0)
np.savez(FOLDER / "data.npz", x=x, y=y, x_test=x_test, expected=expected)

PROGRAM = """
import sys
import keras
import numpy as np
import keras_neumeta

data = np.load("data.npz")
hyper = keras.saving.load_model("hyper.keras")
outputs = hyper.morph(ratio=0.5).predict(data["x_test"], verbose=0)
difference = abs(outputs - data["expected"]).max()
print(f"{keras.backend.backend()}: largest difference {difference:.0e}")
if "train" in sys.argv:
    before = int(hyper.optimizer.iterations)
    hyper.fit(data["x"], data["y"], batch_size=64, verbose=0)
    print(f"  steps {before} -> {int(hyper.optimizer.iterations)}")
"""


def run(backend, folder, *words):
    """Runs Python under a backend; what it prints, or its error."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"A process under {backend} failed:\n{done.stderr}")
    return done.stdout


words = ["-c", PROGRAM] if QUICK else ["-c", PROGRAM, "train"]
for backend in ("jax",) if QUICK else ("tensorflow", "jax", "torch"):
    if importlib.util.find_spec(backend):
        print(run(backend, FOLDER, *words), end="")

"""
What differs between the backends:

- Speed. How a step compares with a plain one on each: the table in the README.
- The first step. JAX and TensorFlow compile it, for all sizes of the step at
  once, which takes a while; PyTorch runs at once.
- oneDNN, which computes convolutions on CPUs for PyTorch (and for TensorFlow
  where it is switched on), has a
  [fault](https://github.com/uxlfoundation/oneDNN/issues/6035): the gradient of
  the kernel of a strided 1 x 1 convolution of few channels (below 8, where it
  was seen) is wrong, or never ends. A quarter of 16 channels is 4. Let a
  `MaxPooling2D(1, strides=2)` take every second position first, as in
  `nm.models`.
- Random numbers. The ratios of the steps are the same on all backends for one
  seed; the sizes of `sampler="independent"`, the numbers of blocks, initial
  weights and dropout are not.

## Mixed precision

Set the policy before the network is built. The layers then compute in 16 bits;
the field, from which the weights come, stays in float32, and `compile` scales
the loss for `mixed_float16`. A morphed network has the policy of the target.
"""

keras.config.set_dtype_policy("mixed_bfloat16")
mixed = make()
keras.config.set_dtype_policy("float32")

mixed.fit(x, y, batch_size=64, verbose=2)
layer = mixed.morph(ratio=0.5).get_layer("hidden1")
print("field:", mixed.field.trainable_variables[0].dtype)
print("layer:", layer.compute_dtype, "with weights in", layer.kernel.dtype)

"""
## Watch a size while it trains

`val_accuracy` in the logs is that of the full size. `nm.EvaluateSizes` adds
those of other sizes, as `val_accuracy@0.25`. Name it *before* the callbacks
that read them: Keras hands the logs from one to the next.
"""

hyper = make()
history = hyper.fit(
    x,
    y,
    batch_size=64,
    epochs=2 if QUICK else 8,
    verbose=0,
    callbacks=[
        nm.EvaluateSizes(x_test, y_test, ratios=[1.0, 0.25]),
        keras.callbacks.EarlyStopping(
            "val_accuracy@0.25",
            mode="max",
            patience=2,
            restore_best_weights=True,
        ),
        keras.callbacks.CSVLogger(FOLDER / "log.csv"),
    ],
)
for name in ("loss", "val_accuracy@1", "val_accuracy@0.25"):
    print(f"{name:18}", *(f"{value:.3f}" for value in history.history[name]))

"""
The quarter size has 16 and 8 hidden units here and saw a thousand images: what
it reaches in eight epochs is a curve to watch, no result.

`keras.callbacks.TensorBoard`, named after `EvaluateSizes` too, shows these
curves as `epoch_accuracy@0.25` beside those of the full size, on every backend:
`pip install tensorboard`, and TensorFlow, with which Keras writes them.

## Go on after a break

`keras.callbacks.BackupAndRestore` writes a backup after each epoch, and a
training that is started again with the same arguments goes on from it. What the
hypermodel has learned comes back: the field, the statistics, the optimizer, and
where the sampler was. With `double_checkpoint=True` a backup that was cut off
while it was written does no harm. With `save_freq` in steps, Keras begins the
epoch anew: it does not know which of its data were seen.

Here a training breaks off after one of three epochs, as if the machine had gone
down; the second call of `fit` does the other two. Compared with a training that
went through, nothing is lost. The order of the data is no part of the model:
`shuffle=False` makes both see the same.
"""


class BreakOff(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def fit(hyper, *callbacks):
    return hyper.fit(
        x,
        y,
        batch_size=64,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )


through = make()
fit(through)

try:
    fit(
        make(),
        keras.callbacks.BackupAndRestore(FOLDER / "backup"),
        BreakOff(),
    )
except KeyboardInterrupt:
    print("broken off")
resumed = make()
history = fit(resumed, keras.callbacks.BackupAndRestore(FOLDER / "backup"))
print("epochs of the second call:", [epoch + 1 for epoch in history.epoch])
difference = np.abs(
    through.morph(ratio=0.5).predict(x_test, verbose=0)
    - resumed.morph(ratio=0.5).predict(x_test, verbose=0)
)
print(f"largest difference at half of the width: {difference.max():.0e}")

"""
For files to keep, `keras.callbacks.ModelCheckpoint(path,
monitor="val_accuracy@0.25", mode="max", save_best_only=True)`, named after
`EvaluateSizes`. Keras' callbacks begin anew in the second call of `fit`: such a
`ModelCheckpoint` takes its first epoch for the best and replaces the file,
`EarlyStopping` counts from zero. Give the best value so far as
`initial_value_threshold`, or put `{epoch}` into the path.

## Several devices

Each device computes its part of every batch, and all draw the same sizes in
each step.

- TensorFlow: make and compile the hypermodel within the scope of a
  `tf.distribute` strategy. Field and sampler may be made anywhere.
- JAX: within that of `keras.distribution.DataParallel`. Several processes need
  the same seeds, or JAX stops with an error.
- PyTorch: one process per device, joined by `torch.distributed`. Each needs a
  `BackupAndRestore` with a folder of its own: with one in the first process
  alone, that one goes on from a later epoch than the others.

`examples/several_devices.py` does all three, and on a machine without GPUs
simulates devices on the CPU: no faster there, but the same numbers. Below are
the losses of two epochs of four steps, on one device and on two: to compare,
not to learn. Between the backends they differ, as the initial weights do.
"""


def losses(backend, *words):
    output = (FOLDER / "-".join([backend, *words])).absolute()
    options = ["--quick", "--dataset", "digits", "--output", str(output)]
    run(backend, "../examples", "several_devices.py", *words, *options)
    history = json.loads((output / "history.json").read_text())
    print(backend, *words, *(f"{loss:.5f}" for loss in history["loss"]))


if not QUICK:
    for backend in ("tensorflow", "jax"):
        losses(backend)
        losses(backend, "--devices", "2")
    losses("torch")
    losses("torch", "--processes", "2")

"""
The batch size is that of all devices together: with the same one, nothing else
has to change. Batch norm is an exception, as in plain Keras: each device of
TensorFlow, and each process of PyTorch, normalizes its part of the batch by
itself. `BatchNormalization(synchronized=True)` mends that on TensorFlow.
"""
