"""Runs the examples of the public docstrings."""

import inspect
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_neumeta
from keras_neumeta.graph.rules import registry as rules

NAMES = sorted(
    name
    for name in vars(keras_neumeta)
    if inspect.isclass(getattr(keras_neumeta, name))
    or inspect.isfunction(getattr(keras_neumeta, name))
)


def examples(name):
    text = inspect.getdoc(getattr(keras_neumeta, name)) or ""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def namespace(monkeypatch, tmp_path):
    """What the examples take for granted."""
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    monkeypatch.setattr(rules, "_ELEMENTWISE", set(rules._ELEMENTWISE))
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 6, 6, 1)).astype("float32")
    y = random.integers(0, 3, 32)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    hyper = keras_neumeta.ManifoldHyperModel(model)
    hyper.compile("adam", loss, metrics=["accuracy"])
    return {
        "keras": keras,
        "keras_neumeta": keras_neumeta,
        "np": np,
        "model": model,
        "hyper": hyper,
        "loss": loss,
        "x": x,
        "y": y,
        "x_train": x,
        "y_train": y,
        "x_test": x,
        "y_test": y,
    }


@pytest.mark.parametrize("name", [n for n in NAMES if examples(n)])
def test_examples_run(name, namespace):
    for code in examples(name):
        exec(compile(code, f"<example of {name}>", "exec"), namespace)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_says_what_it_is(name):
    own = vars(getattr(keras_neumeta, name)).get("__doc__")
    assert own if inspect.isclass(getattr(keras_neumeta, name)) else True
    assert inspect.getdoc(getattr(keras_neumeta, name))


def test_examples_are_found():
    assert {"ManifoldHyperModel", "trace", "smooth", "register_rule"} <= {
        name for name in NAMES if examples(name)
    }
