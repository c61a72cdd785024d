"""`EvaluateSizes`: the metrics of chosen sizes in the logs of training."""

import inspect
import math
from collections.abc import Iterable, Iterator

import keras

from keras_neumeta.graph.sizes import check_ratio
from keras_neumeta.hypermodel import ManifoldHyperModel
from keras_neumeta.morphing import check_one_way
from keras_neumeta.sweep import RATIOS, compile_like

_WAYS = ("ratio", "sizes", "params", "macs")
_ARGUMENTS = [
    name
    for name in inspect.signature(ManifoldHyperModel.morph).parameters
    if name not in ("self", "into")
]


class EvaluateSizes(keras.callbacks.Callback):
    """Evaluates sizes of a hypermodel at the end of epochs, while it trains.

    The logs get each metric of each size: `val_loss@0.25`,
    `val_accuracy@0.25`. Keras hands the logs from one callback to the next:
    name this one before those that read them (`EarlyStopping`,
    `ModelCheckpoint`, `CSVLogger`, `TensorBoard`). `History` and the progress
    bar always come last.

    `validation_data` of `fit` evaluates the full size alone, as `val_loss`
    and `val_accuracy`.

    Callbacks that compare need their `mode` (`"max"`, `"min"`): Keras cannot
    tell it from such names. Nor can a name with a dot stand in the path of
    `ModelCheckpoint`; `{val_loss@half}` can, of
    `ratios={"half": {"ratio": 0.5}}`.

    Each size is a network of its own, built and compiled when training
    begins; an epoch only gives it new weights.

    Args:
        x, y: Validation data, as for `evaluate` (arrays, or a dataset that can
            be read again in each epoch).
        ratios: Kept widths; or a dict from names of sizes, which then stand
            behind the `@`, to the arguments of `hyper.morph`, such as
            `{"small": {"ratio": 0.5, "depth": 2}, "tiny": {"macs": 0.1}}`.
        freq: At the end of each how many epochs. Those between have no such
            logs, as with `validation_freq` of `fit`.
        batch_size, verbose, sample_weight, steps: As for `evaluate`. An
            endless dataset needs `steps`.
        morph: Further arguments of `hyper.morph`, for all sizes.

    Raises:
        TypeError, ValueError: If an argument cannot be used; the message
            says why.

    Example:

    ```python
    sizes = keras_neumeta.EvaluateSizes(x_test, y_test, ratios=[0.5, 0.25])
    stop = keras.callbacks.EarlyStopping(
        "val_accuracy@0.25", mode="max", patience=3, restore_best_weights=True
    )
    hyper.fit(x, y, epochs=2, callbacks=[sizes, stop])
    ```
    """

    def __init__(
        self,
        x,
        y=None,
        ratios=RATIOS,
        *,
        freq=1,
        batch_size=None,
        verbose=0,
        sample_weight=None,
        steps=None,
        **morph,
    ):
        super().__init__()
        if isinstance(freq, bool) or not isinstance(freq, int) or freq < 1:
            raise ValueError(
                "Argument `freq` must be a number of epochs, at least 1. "
                f"Received: freq={freq!r}"
            )
        _check_data(x, steps)
        self.sizes = {
            name: {**morph, **size} for name, size in _named(ratios).items()
        }
        for name, size in self.sizes.items():
            _check_size(name, size)
        self.freq = freq
        self.data = {"x": x, "y": y, "sample_weight": sample_weight}
        self.options = {
            "batch_size": batch_size,
            "steps": steps,
            "verbose": verbose,
        }

    def on_train_begin(self, logs=None):
        # The attribute `model` of a callback also fetches the state of JAX.
        hyper = self.model
        if not hasattr(hyper, "morph"):
            raise TypeError(
                "`EvaluateSizes` is a callback for the `fit` of a "
                f"`ManifoldHyperModel`. Received: {type(hyper).__name__} "
                f"'{hyper.name}'"
            )
        self.models = {}
        for name, size in self.sizes.items():
            self.models[name] = hyper.morph(**size)
            compile_like(self.models[name], hyper)

    def on_epoch_end(self, epoch, logs=None):
        if logs is None or (epoch + 1) % self.freq:
            return
        hyper = self.model
        for name, model in self.models.items():
            hyper.morph(**self.sizes[name], into=model)
            results = model.evaluate(
                **self.data, **self.options, return_dict=True
            )
            for metric, value in results.items():
                logs[f"val_{metric}@{name}"] = value

    def on_train_end(self, logs=None):
        self.models = {}


def _check_data(x, steps):
    if isinstance(x, Iterator):
        raise TypeError(
            "Argument `x` must be arrays, or a dataset that can be read again "
            f"in each epoch. Received {type(x).__name__}, which can be read "
            "once. Make it a `keras.utils.PyDataset`, or arrays."
        )
    cardinality = getattr(x, "cardinality", None)
    # As `tf.data` counts the batches of an endless dataset.
    endless = callable(cardinality) and int(cardinality()) == -1
    if isinstance(x, keras.utils.PyDataset):
        endless = x.num_batches is None
    if endless and steps is None:
        raise ValueError(
            "Argument `steps` must be a number of batches for an endless "
            f"dataset. Received: x={x!r}, steps=None"
        )


def _check_size(name, size):
    unknown = sorted(size.keys() - {*_ARGUMENTS})
    if unknown:
        raise TypeError(
            f"Size {name!r} must have arguments of `morph`, among "
            f"{_ARGUMENTS}. Received: {unknown}"
        )
    check_one_way(f"Size {name!r}", **{way: size.get(way) for way in _WAYS})
    ratio = size.get("ratio")
    if ratio is not None and not isinstance(ratio, dict):
        check_ratio(ratio, math.inf if size.get("extrapolate") else 1.0)


def _named(ratios):
    """Dict from the names of sizes to arguments of `morph`."""
    if isinstance(ratios, dict):
        for name, size in ratios.items():
            if not isinstance(size, dict) or "into" in size:
                raise TypeError(
                    "Argument `ratios` must have a dict of arguments of "
                    "`morph`, without `into`, for each name, such as "
                    f"{{'ratio': 0.5}}. Received: {name!r}: {size!r}"
                )
            if isinstance(size.get("ratio"), list | tuple):
                raise TypeError(
                    "Argument `ratios` must have one size for each name. "
                    f"Received: {name!r}: {size!r}"
                )
        named = ratios
    else:
        if isinstance(ratios, str) or not isinstance(ratios, Iterable):
            raise TypeError(
                "Argument `ratios` must be a list of kept widths, or a dict. "
                f"Received: ratios={ratios!r}"
            )
        ratios = list(ratios)
        named = {f"{check_ratio(r, math.inf):g}": {"ratio": r} for r in ratios}
        if len(named) < len(ratios):
            raise ValueError(
                "Argument `ratios` must hold each width once, told apart by "
                f"six digits. Received: ratios={ratios}"
            )
    if not named:
        raise ValueError("Argument `ratios` must not be empty.")
    return named
