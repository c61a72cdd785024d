"""
Title: Bring your own model
Description: Groups, sizes, budgets, freezing, depth, layers of your own.
"""

"""
## What can be morphed

Any Sequential or functional Keras model. The library never needs to know your
architecture: it follows the channels through the graph of layers. This guide
shows how to read what it found, and how to say what you want. Nothing is
trained here: everything below is decided before the first step.

## Set-up
"""

import importlib.util
import os
import pathlib
import tempfile

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers, ops

import keras_neumeta as nm

QUICK = "GUIDES_QUICK" in os.environ  # A smaller network: to see it runs.

keras.utils.set_random_seed(0)
print(f"Keras {keras.version()} on {keras.backend.backend()}, seed 0")

"""
## Channel groups

A small residual network of our own. The shortcut adds the output of `stem` to
that of `body2`: these two must always have equally many channels.
"""


def residual_network():
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(32, 3, padding="same", name="stem")(image)
    y = layers.Conv2D(64, 3, padding="same", name="body1")(x)
    y = layers.BatchNormalization(name="norm1")(y)
    y = layers.Activation("relu")(y)
    y = layers.Conv2D(32, 3, padding="same", name="body2")(y)
    x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(48, activation="gelu", name="hidden")(x)
    x = layers.Dense(10, name="classes")(x)
    return keras.Model(image, x, name="residual")


model = residual_network()
graph = nm.trace(model)
graph.summary()

"""
How to read it: a line is a *group*, channels that are kept or left out
together, named after the layer that makes them. `layers` are those with weights
along these channels. `stem` and `body2` are one group, the classes are no
group that may change. The last line says how much of the network changes its
shape at all.

## Sizes

A *size* is the number of channels of each group, in the order of the table.
"""

print("full:", graph.full_sizes)
for ratio in (0.5, 0.25):
    sizes = graph.sizes(ratio)
    print(
        f"ratio {ratio}: {sizes}, {graph.count_params(sizes):,} parameters, "
        f"{graph.count_macs(sizes):,} MACs"
    )

"""
The hypermodel takes the same words in `morph`. A dict goes by the names of
groups or layers, or by patterns; all others stay as they are.
"""

hyper = nm.ManifoldHyperModel(model, sampler="independent")


def show(what, network):
    widths = [
        network.get_layer(name).kernel.shape[-1]
        for name in ("stem", "body1", "hidden")
    ]
    print(f"{what:40} {widths}  {network.count_params():,} parameters")


for ratio in (0.5, {"body*": 0.5}, {"body1": 0.25, "hidden": 0.5}):
    show(f"ratio={ratio}", hyper.morph(ratio))
for sizes in ({"body1": 20}, {"hidden": 7, "stem": 30}):
    show(f"sizes={sizes}", hyper.morph(sizes=sizes))

"""
`"body*"` also changed `stem`, which shares a group with `body2`.

With `sampler="independent"` each group draws a width of its own while training,
so that any mixture of widths is a size that the training has seen. The default
draws one ratio for all groups of a size: then keep to one ratio in `morph`.

## Budgets

Ask for the largest network within a budget: a number, or a share of the full
network. `divisor` rounds channels to what hardware likes.
"""

for budget in (
    {"params": 20_000},
    {"macs": 0.3},
    {"params": 0.5, "macs": 10_000_000, "divisor": 8},
):
    show(
        ", ".join(f"{k}={v}" for k, v in budget.items()), hyper.morph(**budget)
    )

"""
What cannot be is said at once:
"""

for wrong in ({"params": 10}, {"ratio": 1.5}, {"ratio": {"bdy1": 0.5}}):
    try:
        hyper.morph(**wrong)
    except ValueError as error:
        print(f"- {error}")

"""
## Freezing

`layers=` names the layers whose channels may change; all others keep theirs.
A pretrained stem, or a stream of features that other programs read, stays as
it is.
"""

nm.trace(model, layers=["body1", "hidden"]).summary()

"""
A layer with `trainable = False` is something else: it keeps its *values*, but
smaller networks still read fewer of its channels. To keep a layer whole, leave
it out of `layers`.

## Fewer blocks

Blocks whose shortcut is the identity can be left out altogether. `min_depth`
says how many of them at least are kept; the training then draws that number,
too.
"""

deep = nm.models.cifar_resnet(8 if QUICK else 20, widths=(8, 16, 32))
hyper = nm.ManifoldHyperModel(deep, min_depth=1)
names = [block.name for block in hyper.graph.blocks]
print("May be left out, the last first:", ", ".join(names))
for depth in range(1, len(names) + 1, 2):
    network = hyper.morph(ratio=0.5, depth=depth)
    print(
        f"half of every width, {depth} of these blocks: "
        f"{len(network.layers)} layers, {network.count_params():,} parameters"
    )

"""
## A network from `keras.applications`

All of them are traced and morphed
([table](../benchmarks/results/applications.md)). Here one without pretrained
weights, so that nothing is downloaded; `weights="imagenet"` works the same.
`classifier_activation=None` gives logits.
"""

if QUICK:
    network = keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, weights=None, classes=10
    )
else:
    network = keras.applications.MobileNetV2(
        (96, 96, 3), weights=None, classes=10, classifier_activation=None
    )


def morph_all(network):
    graph = nm.trace(network)
    print(f"{len(graph.groups)} groups, the first of them:")
    for group in graph.groups[:5]:
        print(f"- {group.name}: {group.num_channels} channels")
    print(
        f"{100 * graph.morphable_share:.2f} % of the parameters are in weights "
        "that change their shape"
    )
    widths = (1.0, 0.5, 0.25)
    hyper = nm.ManifoldHyperModel(network, sampler=nm.Switches(widths))
    for ratio in widths:
        morphed = hyper.morph(ratio)
        print(f"{ratio}: {morphed.count_params():,} parameters")


morph_all(network)

"""
The weights are random, so these networks know nothing yet: compile a hypermodel
and call `fit`, as in `getting_started`. `nm.Switches` trains the same few
widths in every step, each at its own size.

## A backbone of keras-cv

Backbones of other libraries are functional models as well. This one of keras-cv
is a ResNet18, made by its class, with random weights. Presets, such as
`keras_cv.models.ResNet18Backbone()`, are downloaded. With a head of our own on
top the last features are no output of the model any more, and change too. The
`ResNetBackbone` of keras-hub is used in the same way.
"""

if importlib.util.find_spec("keras_cv"):
    import keras_cv

    stages = 2 if QUICK else 4
    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512][:stages],
        stackwise_blocks=[2, 2, 2, 2][:stages],
        stackwise_strides=[1, 2, 2, 2][:stages],
        block_type="basic_block",
        include_rescaling=True,
        input_shape=(64, 64, 3),
    )
    features = layers.GlobalAveragePooling2D()(backbone.output)
    classes = layers.Dense(10, name="classes")(features)
    morph_all(keras.Model(backbone.input, classes))
else:
    print('Left out: needs keras-cv (pip install "keras_neumeta[cv]").')

"""
## A layer of your own

A layer that the library does not know is no error. It freezes the channels
that it touches, and the summary says so:
"""


@keras.saving.register_keras_serializable("guide")
class Gate(layers.Layer):
    """Scales each channel by a learned share of its mean over the image."""

    def build(self, shape):
        self.scale = self.add_weight(
            shape=(shape[-1],), initializer="random_normal", name="scale"
        )

    def call(self, x):
        mean = ops.mean(x, axis=(1, 2), keepdims=True)
        return x * ops.sigmoid(self.scale * mean)


gated = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        layers.Conv2D(16, 3, activation="relu", name="conv1"),
        Gate(name="gate"),
        layers.Conv2D(32, 3, activation="relu", name="conv2"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10, name="classes"),
    ],
    name="gated",
)
nm.trace(gated).summary()

"""
A *rule* says how the channels go through the layer: which axis of the input
holds them, which axes of its weights, which axis of the output. The gate keeps
each channel by itself, so its last axis passes through, and the weight `scale`
has those channels on its only axis.

- `call.inputs`: the inputs; `x.channels(axis)`: the channels on an axis.
- `call.weight(variable, {axis: channels})`: what belongs to a weight.
- `call.output({axis: channels})`: what comes out.
"""


@nm.register_rule(Gate)
def gate(call):
    (x,) = call.inputs
    call.weight(call.layer.scale, {0: x.channels(-1)})
    return call.output({-1: x.channels(-1)})


nm.trace(gated).summary()

"""
Is the rule right? One that ties the wrong axes gives another function as soon
as channels are reordered. `sort_channels` reorders them all, by importance:
the outputs must stay as they are. And `morph` must find the layer's weights at
their smaller shape.
"""


def check(network):
    shape = (4, *network.input_shape[1:])
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    difference = network(x) - nm.sort_channels(network)(x)
    print(f"largest difference: {float(ops.max(ops.abs(difference))):.1e}")
    return nm.ManifoldHyperModel(network).morph(ratio=0.25)


small = check(gated)
print("a quarter of the gate:", small.get_layer("gate").scale.shape)

"""
A layer that makes channels of its own, as `Dense` does with `units`, says two
things more: `call.new_channels(number)` makes them, and
`call.resize("units", channels)` says which argument of its config counts them,
so that `morph` can build a smaller one from `get_config`.

In `call.weight`, `summed` names the axes that the layer sums over, here the
inputs, and `positions` how often one example uses each weight, for the MACs.
What else a rule can say stands in the API reference, with `register_rule`; the
rules of Keras' own layers in `keras_neumeta/graph/rules`.
"""


@keras.saving.register_keras_serializable("guide")
class GatedDense(layers.Layer):
    """A dense layer whose units are gated by another one."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        shape = (shape[-1], self.units)
        self.value = self.add_weight(shape=shape, name="value")
        self.gate = self.add_weight(shape=shape, name="gate")

    def call(self, x):
        return ops.matmul(x, self.value) * ops.sigmoid(ops.matmul(x, self.gate))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@nm.register_rule(GatedDense)
def gated_dense(call):
    (x,) = call.inputs
    units = call.new_channels(call.layer.units)
    for kernel in (call.layer.value, call.layer.gate):
        call.weight(
            kernel, {0: x.channels(-1), 1: units}, summed=(0,), positions=1
        )
    call.resize("units", units)
    return call.output({-1: units})


dense = keras.Sequential(
    [
        keras.Input((16,)),
        GatedDense(24, name="gated1"),
        GatedDense(32, name="gated2"),
        layers.Dense(10, name="classes"),
    ],
    name="dense",
)
nm.trace(dense).summary()
small = check(dense)
print("a quarter of gated2:", small.get_layer("gated2").gate.shape)

"""
An activation function of your own freezes its channels as well, since it might
mix them, as softmax does. One that acts on each value alone says so once. Like
a layer, it is registered with Keras, or a saved model could not be loaded:
"""


@keras.saving.register_keras_serializable("guide")
def soft_clip(x):
    return ops.tanh(x / 3) * 3


clipped = keras.Sequential(
    [
        keras.Input((16,)),
        layers.Dense(24, activation=soft_clip, name="hidden"),
        layers.Dense(10, name="classes"),
    ]
)
print("before:", len(nm.trace(clipped).morphable_groups), "morphable groups")
nm.register_elementwise(soft_clip)
print("after:", len(nm.trace(clipped).morphable_groups), "morphable groups")

with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "clipped.keras"
    nm.ManifoldHyperModel(clipped).save(path)
    small = keras.saving.load_model(path).morph(ratio=0.25)
hidden = small.get_layer("hidden")
print("reloaded:", hidden.activation.__name__, "of", hidden.units, "units")
