"""
Title: How it works
Description: Coordinates, smoothing, the field, noise, the loss, statistics.
"""

"""
## The idea

The weights of a network of any size are samples of one continuous function:
from the *coordinates* of a weight (which channel of how many) to its value.
Learn that function, the *weight field*, and every size can be read from it.

```
model -> channel graph -> order of channels -> weight field -> step -> morph
```

This guide trains a small network with batch norm and looks at each station.

Source: Neural Metamorphosis (Yang and Wang, ECCV 2024).

## Set-up
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers

import keras_neumeta as nm

sys.path.append("../examples")  # Run this in the folder `guides`.
from mnist_lenet import load_data

QUICK = "GUIDES_QUICK" in os.environ  # Little data: to see that all runs.

keras.utils.set_random_seed(0)
print(f"Keras {keras.version()} on {keras.backend.backend()}, seed 0")
name, (x, y), (x_test, y_test) = load_data("digits" if QUICK else "auto")
if QUICK:
    x, y, x_test, y_test = x[:128], y[:128], x_test[:64], y_test[:64]


def block(width, number):
    return [
        layers.Conv2D(width, 3, use_bias=False, name=f"conv{number}"),
        layers.BatchNormalization(momentum=0.9, name=f"norm{number}"),
        layers.Activation("relu"),
        layers.MaxPooling2D(),
    ]


model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        *block(16, 1),
        *block(32, 2),
        layers.Conv2D(64, 3, activation="relu", name="conv3"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10, name="classes"),
    ],
    name="digits",
)


def train(network, epochs, images=None):
    epochs = 1 if QUICK else epochs
    steps = -(-len(x[:images]) // 128) * epochs
    network.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(2e-3, steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        run_eagerly=QUICK,
    )
    return network.fit(
        x[:images], y[:images], batch_size=128, epochs=epochs, verbose=2
    )


train(model, epochs=1)
print(f"{name}: {model.evaluate(x_test, y_test, verbose=0)[1]:.4f}")

"""
## The order of the channels

The channels of a layer have no order: permute the outputs of a convolution and
the inputs of the next one alike, and the network computes the same. So their
order is ours to choose. A function that is to be learned over the channel
should be smooth in it.

- `smooth` puts each group of channels along a shortest path: neighbours are as
  alike as can be. For fields that *interpolate* between channels.
- `sort_channels` puts the largest first, by L1 norm. For fields that read the
  *leading* channels. This is what the default field asks for.

*Total variation* is the sum of the differences between neighbours.
"""

orders = {
    "as trained": model,
    "along a path": nm.smooth(model),
    "by importance": nm.sort_channels(model),
}
for title, network in orders.items():
    difference = np.abs(
        network.predict(x_test[:64], verbose=0)
        - model.predict(x_test[:64], verbose=0)
    ).max()
    print(
        f"{title:14} total variation {nm.total_variation(network):6.1f}, "
        f"outputs differ by {difference:.0e}"
    )

"""
The picture is the middle of the 3 x 3 kernels of `conv2`: rows are its 16
inputs, columns its 32 outputs. The three are the same network; the number is
the total variation of all of it.
"""


def picture(axes, kernel, limit):
    middle = np.asarray(kernel)[1, 1]
    shown = axes.imshow(middle, cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set(xticks=[], yticks=[])
    return shown


limit = np.abs(np.asarray(model.get_layer("conv2").kernel)[1, 1]).max()
figure, columns = plt.subplots(1, 3, figsize=(10, 2.4), layout="constrained")
for axes, (title, network) in zip(columns, orders.items()):
    shown = picture(axes, network.get_layer("conv2").kernel, limit)
    axes.set_title(f"{title}: {nm.total_variation(network):.0f}")
figure.colorbar(shown, ax=columns)

"""
The path gathers channels that are alike: see the dark corners. It serves all
weights of a group at once (the kernel before, batch norm, the kernel after), so
that one kernel alone still looks rough. And sixteen channels hold few that are
alike: do not expect a picture as smooth as a photograph.

## Coordinates

Channel `i` of `n` reads the field, which has `N` channels, at the position

```
(i + 0.5) * (N / n) ** stretch - 0.5
```

`stretch=0` reads the leading `n` channels; `stretch=1` keeps relative
positions, in between those of the full network, and interpolates.
"""

figure, columns = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
for axes, stretch in zip(columns, (0, 1)):
    for n in (16, 12, 8, 4):
        positions = (np.arange(n) + 0.5) * (16 / n) ** stretch - 0.5
        axes.plot(positions, [n] * n, "o")
    axes.set(
        title=f"stretch={stretch}",
        xlabel="position in the field (N = 16)",
        yticks=(4, 8, 12, 16),
        ylabel="channels n",
    )

"""
## The weight field

`AnchoredField` holds one array of *control points* per weight, of the same
shape as the weight, started at the model's own values. So the full size is the
model, exactly, and the field stores exactly as many numbers as the network has
weights (the statistics of batch norm are kept beside it).
Sums over `n` of `N` inputs are multiplied by `N / n`, to keep their size. A
hypermodel that is given no field adds a level, `levels=(0.25,)`: corrections
to these points, as many as a quarter-size network has weights, which count in
full at a quarter and not at all from a half on. What the smallest sizes need is
learned there and takes nothing from the large ones, which they follow.

`ImplicitField` asks a small neural network for each value, as published; the
hypermodel first fits it to the model's own values, interpolated at every size.
Below is what the two kinds of `AnchoredField` give for `conv2` *before* any
training of sizes.
"""

fields = {
    "leading (stretch=0)": nm.AnchoredField(),
    "interpolated (stretch=1)": nm.AnchoredField(stretch=1),
}
untrained = {
    title: nm.ManifoldHyperModel(model, field)
    for title, field in fields.items()
}
figure, grid = plt.subplots(2, 3, figsize=(9, 4), layout="constrained")
for row, (title, hyper) in zip(grid, untrained.items()):
    row[0].set_ylabel(title, fontsize=8)
    for axes, ratio in zip(row, (1.0, 0.5, 0.25)):
        kernel = hyper.morph(ratio).get_layer("conv2").kernel
        shown = picture(axes, kernel, 2 * limit)
        axes.set_title(f"{ratio}: {kernel.shape[2]} x {kernel.shape[3]}")
figure.colorbar(shown, ax=grid)

"""
How far do they carry without training? The batch-norm statistics are measured
anew here (`calibration_data`), so that only the weights count.
"""


def accuracies(hyper, ratios, **morph):
    table = nm.sweep(hyper, x_test, y_test, ratios, batch_size=500, **morph)
    return [row["accuracy"] for row in table.rows[: len(ratios)]]


ratios = (1.0, 0.25) if QUICK else (1.0, 0.75, 0.5, 0.25)
for title, hyper in untrained.items():
    hyper.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        run_eagerly=QUICK,
    )
    values = accuracies(hyper, ratios, calibration_data=x[:1000])
    words = ", ".join(f"{r}: {v:.4f}" for r, v in zip(ratios, values))
    print(f"{title:25} {words}")

"""
Interpolated channels carry further, since every channel is still heard; the
leading ones miss whole features. But neither comes near a trained network at a
quarter of the width: sizes have to be trained. Which field is better *after*
training, this does not say.

## Coordinate noise

While training, each coordinate may be moved by a random part of a channel
(`noise=1`: half a channel to either side), as published. The field then has to
be right between its channels as well, which makes it smoother across sizes.
`morph(samples=50, noise=0.5)` averages the weights over half as much (over as
much and more, statistics are better measured anew: `calibration_data`). Noise
needs a field that interpolates; the default reads whole channels and takes
none.

The lines are one row of `conv2` at half of the width: without noise, twenty
noisy readings of it, and their average.
"""

hyper = untrained["interpolated (stretch=1)"]
sizes = hyper.graph.sizes(0.5)
names = [layout.path for layout in hyper.field.layouts]
place = next(n for n, path in enumerate(names) if "conv2" in path)


def row_of(offsets=None):
    kernel = hyper.field.generate(sizes, offsets)[place]
    return keras.ops.convert_to_numpy(kernel)[1, 1, 0]


noisy = [row_of(hyper.draw_offsets(sizes, noise=1.0)) for _ in range(20)]
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
axes.plot(np.transpose(noisy), color="0.8")
axes.plot(row_of(), "o-", label="without noise")
axes.plot(np.mean(noisy, axis=0), "--", color="black", label="average")
axes.set(xlabel="output channel of 16", ylabel="weight")
axes.legend()

"""
## A step, and its loss

A step of `fit` draws sizes (four fixed ones and two random ones with the
default sampler), reads their weights from the field, runs the network with
each, and takes the gradient of the sum of their losses:

- `task_loss`: the compiled loss, here the mean over the sizes of the step.
- `distillation_loss`: smaller sizes against the outputs of the largest one. It
  replaces their task loss to the share `distillation` (0.5 by default).
- `reconstruction_loss`: distance of the generated full-size weights from those
  of the given model, times `reconstruction` (0 by default).
- `weight_norm_loss`: the sum of the L2 norms of all generated weights, times
  `weight_norm` (0 by default); the log is the mean over the sizes.

A smaller size counts by its ratio to the power `ratio_power` (1). `loss` is
what the gradient is of: the weighted sum, so it is larger than any of them.

Here every term is on, to see them in the log.
"""

hyper = nm.ManifoldHyperModel(
    model, reconstruction=1.0, weight_norm=1e-4, seed=0
)
train(hyper, epochs=1)

"""
What does each term change? The same network, data and steps, and one setting
at a time: test accuracies by kept width.
"""

settings = {
    "default": {},
    "no distillation": {"distillation": 0.0},
    "distillation alone": {"distillation": 1.0},
    "all sizes count alike": {"ratio_power": 0.0},
    "reconstruction": {"reconstruction": 1.0},
    "weight norm": {"weight_norm": 1e-2},
}
if QUICK:
    settings = {"default": {}}
results = {}
for title, arguments in settings.items():
    each = nm.ManifoldHyperModel(model, seed=0, **arguments)
    keras.utils.set_random_seed(0)
    train(each, epochs=1, images=10_000)
    results[title] = accuracies(each, ratios)
print(f"{'':22}", *(f"{ratio:6}" for ratio in ratios))
for title, values in results.items():
    print(f"{title:22}", *(f"{value:.4f}" for value in values))

"""
This is one seed, and 79 steps on a sixth of the data: no ranking of settings,
for which see `choosing_a_field_and_a_recipe`. But three things can be seen.

- The full size is below the accuracy that it began with. Small sizes, which
  start near guessing, pull at the weights that all share, and 79 steps are too
  few to make up for it.
- Distillation alone is far behind so early: the teacher is the full size of the
  same step, which itself has to learn. Without any, all sizes are ahead after
  these few steps; whether that holds in a whole training is another question.
- `reconstruction=1` changes nothing. The log says why: the term is less than a
  ten-thousandth of the loss. Look at the log before you believe that a term is
  at work.

## Batch-norm statistics

Batch norm keeps a moving mean and variance per channel, and these differ
between sizes. The hypermodel measures them while it trains, as curves over the
size, so that `morph` needs no data. The lines are the variances that it hands
to a morphed network; the dots are measured anew on training images, for that
size (`calibration_data`). Both are of the same trained weights.
"""

train(hyper, epochs=2)
# Of whole numbers of channels: 16 to 4 of the first layer.
lines = np.arange(16, 3, -12 if QUICK else -1) / 16
dots = lines[:: 1 if QUICK else 2]
figure, columns = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for axes, layer in zip(columns, ("norm1", "norm2")):

    def variances(ratio, layer=layer, **morph):
        norm = hyper.morph(ratio, **morph).get_layer(layer)
        return keras.ops.convert_to_numpy(norm.moving_variance)[:4]

    kept = np.array([variances(ratio) for ratio in lines])
    measured = np.array(
        [variances(ratio, calibration_data=x[:2000]) for ratio in dots]
    )
    for channel in range(4):
        color = f"C{channel}"
        axes.plot(lines, kept[:, channel], color=color)
        axes.plot(dots, measured[:, channel], "o", color=color)
    axes.set(title=f"{layer}, channels 0 to 3", xlabel="kept width")
    axes.set_ylabel("moving variance")

"""
The accuracy with both, at each size:
"""

for title, morph in {
    "kept by training": {},
    "measured anew": {"calibration_data": x[:2000]},
}.items():
    values = accuracies(hyper, ratios, **morph)
    words = ", ".join(f"{r}: {v:.4f}" for r, v in zip(ratios, values))
    print(f"{title:17} {words}")

"""
`norm1` follows the first convolution, whose input is the image at every size:
its curves are flat down to a width of 0.5, where the corrections of the level
at a quarter begin. `norm2` sees fewer inputs, with larger weights, in smaller
networks. Lines and dots agree but at 0.375, a size that is drawn now and then,
between two that every step trains: there all four lines of `norm2` lie below
their dots, by about a tenth.

The accuracies are those of four widths that every step trains and measures, and
hardly differ; for a width like 0.375 they may. Where they do for your network,
give `morph` some training inputs.

## Morph

Last, `morph` builds the plain network of a size layer by layer, reads its
weights from the field and its statistics from the curves, and hands it over.
What it returns knows nothing of all this.
"""

small = hyper.morph(0.25)
print(type(small).__module__, type(small).__name__, small.count_params())
