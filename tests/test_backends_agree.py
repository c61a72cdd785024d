"""The first steps of training are the same on every backend.

`python tests/test_backends_agree.py` writes the reference anew, with the
backend that `KERAS_BACKEND` names.
"""

import json
from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_neumeta import AnchoredField, ManifoldHyperModel, Sandwich

REFERENCE = Path(__file__).parent / "data" / "first_steps.json"
NUM_STEPS = 10


def first_steps():
    """Losses of the first steps, `{name: list}`."""
    # `RandomState`, as its numbers are the same in every NumPy version.
    random = np.random.RandomState(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(8, 3, padding="same")(x)
    x = layers.Add()([x, layers.BatchNormalization()(y)])
    x = layers.MaxPooling2D(2)(x)
    x = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    for variable in model.trainable_variables:
        shape = tuple(variable.shape)
        value = random.normal(size=shape) / np.prod(shape[:-1]) ** 0.5
        if "gamma" in variable.name:
            value = 1 + 0.3 * random.normal(size=shape)
        variable.assign(value.astype("float32"))
    hyper = ManifoldHyperModel(
        model,
        field=AnchoredField(size_knots=(0.3, 0.6)),
        sampler=Sandwich(0.25, num_fixed=3, max_random=1.0, seed=0),
        distillation=0.7,
        ratio_power=0.5,
        reconstruction=0.1,
        weight_norm=1e-3,
        smooth=False,
        seed=0,
    )
    for variable in hyper.field.size_curves.trainable_variables:
        value = random.normal(size=tuple(variable.shape)) * 0.2
        variable.assign(value.astype("float32"))
    hyper.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = random.normal(size=(NUM_STEPS * 8, 6, 6, 2)).astype("float32")
    y = random.randint(3, size=NUM_STEPS * 8)
    logs = {}
    for start in range(0, len(x), 8):
        part = slice(start, start + 8)
        hyper.reset_metrics()
        step = hyper.train_on_batch(x[part], y[part], return_dict=True)
        for name, value in step.items():
            logs.setdefault(name, []).append(float(value))
    return logs


def test_losses_are_those_of_the_reference():
    expected = json.loads(REFERENCE.read_text())
    logs = first_steps()
    assert set(logs) == set(expected)
    for name, values in expected.items():
        assert len(values) == NUM_STEPS
        np.testing.assert_allclose(
            logs[name], values, rtol=1e-3, atol=1e-6, err_msg=name
        )


if __name__ == "__main__":
    REFERENCE.write_text(json.dumps(first_steps(), indent=1) + "\n")
