"""
Title: One network, every size of itself
Description: Train once, then take any size: fit, morph, sweep, save, export.
"""

"""
## What this is

Who ships a network to phones, laptops and servers trains it once per size, or
cuts the large one and loses accuracy. `keras_neumeta` trains *one* hypermodel
that holds every width of your network. Afterwards

- `hyper.morph(ratio=0.25)` gives a plain, physically smaller `keras.Model`,
- without training again, and with nothing of this library inside.

This guide walks once through all of it, on handwritten digits. The training
takes some minutes on a CPU.

## Set-up

`pip install "keras_neumeta[tensorflow,data,plot]"`. The data loader is that of
the examples, so start in the folder `guides` of a checkout.
"""

import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_neumeta as nm

sys.path.append("../examples")  # Run this in the folder `guides`.
from mnist_lenet import load_data

QUICK = "GUIDES_QUICK" in os.environ  # Little data: to see that all runs.
FOLDER = pathlib.Path("outputs/getting_started")
FOLDER.mkdir(parents=True, exist_ok=True)

keras.utils.set_random_seed(0)
print(f"Keras {keras.version()} on {keras.backend.backend()}, seed 0")

"""
`load_data` takes MNIST through tensorflow-datasets (from `TFDS_DATA_DIR`, or
a download); where it cannot be had, the 1,797 digits of scikit-learn. It gives
images of shape `(n, 28, 28, 1)` in 0..1, and integer labels.
"""

name, (x, y), (x_test, y_test) = load_data("digits" if QUICK else "auto")
if QUICK:
    x, y, x_test, y_test = x[:128], y[:128], x_test[:64], y_test[:64]
print(f"{name}: {len(x):,} images to train on, {len(x_test):,} to test with")

"""
## The network

Any built Sequential or functional model will do, trained or not. This one
starts untrained.
"""

model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(16, 3, activation="relu", name="conv1"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, activation="relu", name="conv2"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, activation="relu", name="conv3"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, name="classes"),
    ],
    name="digits",
)

"""
Which widths can change? `trace` follows the channels through the network. The
outputs of a convolution and the inputs of the next one are the same channels:
one *group*, which keeps its number or changes as a whole. The image and the
classes keep theirs.
"""

nm.trace(model).summary()

"""
## Train every size at once

`ManifoldHyperModel` copies the network and is a Keras model itself: compile
and fit it as usual. Each step trains a few sizes, among them the full one and
the smallest; smaller ones also learn from the outputs of the full one. A step
therefore costs several plain steps.

The metrics in the log are those of the full size, and so is `val_loss`;
`loss` is the sum over the sizes of a step.
"""

hyper = nm.ManifoldHyperModel(model)

epochs, batch_size = (1 if QUICK else 3), 128
steps = -(-len(x) // batch_size) * epochs
hyper.compile(
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    run_eagerly=QUICK,
)
hyper.fit(
    x,
    y,
    batch_size=batch_size,
    epochs=epochs,
    validation_data=(x_test, y_test),
    verbose=2,
)

"""
## Morph

`ratio` is the kept width: at 0.25 each group keeps a quarter of its channels,
and a layer between two such groups a sixteenth of its weights. What comes
back is a plain Keras model of that size.
"""

small = hyper.morph(ratio=0.25)
small.summary()

"""
It is compiled with whatever you need next, to evaluate it or to train it on.
Below the smallest ratio of the training (0.25 by default) quality falls
quickly: train with `nm.Sandwich(min_ratio=0.1)` if you need less.

Other ways to say a size: numbers of channels, and budgets.
"""

for size in (
    {"sizes": {"conv1": 8, "conv2": 20}},
    {"params": 10_000},
    {"macs": 0.5, "divisor": 4},
):
    morphed = hyper.morph(**size)
    widths = [morphed.get_layer(f"conv{n}").filters for n in (1, 2, 3)]
    print(f"{size}: widths {widths}, {morphed.count_params():,} parameters")

"""
## Compare sizes

`sweep` morphs and evaluates several sizes. `cut=True` adds what one gets
without this library: the channels of the full network with the smallest L1
norms are removed, and nothing is trained. The *floor* is the network with all
that can morph set to zero: a result means something only above it.

MACs are multiply-accumulates for one example, a measure of the work.
"""

table = nm.sweep(
    hyper,
    x_test,
    y_test,
    ratios=[1.0, 0.75, 0.5, 0.25],
    cut=True,
    batch_size=500,
)
print(table)

"""
The plot shows the error on a logarithmic scale: lower is better, further left
is smaller.
"""

table.plot()

"""
All sizes share their weights, but for the smallest: a quarter has some of its
own, and sizes up to a half blend the two. Here is the accuracy at sixteen
widths. Four of them (1, 0.75, 0.5 and 0.25) are trained in every step, those in
between from 0.75 down are drawn at random now and then, and those above follow
from the full size. It shows: the network at 0.3 makes more errors than the
smaller one at 0.25. Where a size matters, give the sampler that ratio
(`nm.Switches`), or try those around it.
"""

ratios = np.linspace(1.0, 0.25, 2 if QUICK else 16)
fine = nm.sweep(hyper, x_test, y_test, ratios=ratios, batch_size=500)
rows = [row for row in fine.rows if row["method"] == "morph"]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(ratios, [row["accuracy"] for row in rows], "o-")
axes.set(xlabel="kept width", ylabel="test accuracy")
axes.grid(alpha=0.3)

"""
## Keep it

The hypermodel is saved as any Keras model: the field, the statistics, the
optimizer and the state of the sampler come back, so that training can go on.
`import keras_neumeta` before loading it.
"""

hyper.save(FOLDER / "hyper.keras")
reloaded = keras.saving.load_model(FOLDER / "hyper.keras")
np.testing.assert_allclose(
    reloaded.morph(ratio=0.25).predict(x_test[:8], verbose=0),
    small.predict(x_test[:8], verbose=0),
    rtol=1e-5,
    atol=1e-5,
)
for path in sorted(FOLDER.glob("*.keras")):
    print(f"{path.name}: {path.stat().st_size / 1024:,.0f} kB")

"""
## Deploy it

The small network exports like any other, and `nm.export` does so from every
backend. A SavedModel needs neither Keras nor this library to run: here plain
TensorFlow loads it, and its answers are those of the Keras model.
"""

import tensorflow as tf

nm.export(small, FOLDER / "saved_model")

served = tf.saved_model.load(FOLDER / "saved_model")
logits = served.serve(x_test).numpy()
expected = small.predict(x_test, verbose=0)
print(f"largest difference: {np.abs(logits - expected).max():.1e}")
print(f"accuracy: {np.mean(logits.argmax(axis=-1) == y_test):.4f}")

"""
## Where to go on

- Your own architecture: `bring_your_own_model`.
- Why it works, in pictures: `how_it_works`.
- What else there is to choose: `choosing_a_field_and_a_recipe`.
- JAX, PyTorch, several devices, long trainings: `backends_and_devices`.
- ONNX, LiteRT, quantisation: `deploying`.
"""
