"""The published kind of weight field on a LeNet, every width of which morphs.

Trains a LeNet with three convolutions on MNIST, then an `ImplicitField` that
generates the weights of all its sizes, and writes the test accuracy of the
morphed sizes beside their parameters and multiply-accumulates, and the floor.
The state is saved after each epoch; the same command goes on from there.

    python benchmarks/implicit_lenet.py --output benchmarks/results
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from data import load

import keras_neumeta as nm
from keras_neumeta.provenance import provenance

TRAINED = (1.0, 0.75, 0.5, 0.375, 0.25)
BELOW = (0.1875,)
BATCH_SIZE = 128


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, help="default: 10")
    parser.add_argument("--base-epochs", type=int, help="default: 2")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("outputs"),
        help="folder for implicit_lenet.json (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        default=pathlib.Path("outputs/implicit_lenet"),
        help="folder for the state of the training (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little data, one epoch by default: to see that everything runs",
    )
    return parser.parse_args(arguments)


def load_data(quick):
    """Images in [0, 1] and labels: `[(x, y), (x_test, y_test)]`."""
    limits = (1024, 512) if quick else (None, None)
    parts = zip(load("mnist"), limits)
    return [(x[:limit], y[:limit]) for (x, y), limit in parts]


class History(keras.callbacks.Callback):
    """Logs and seconds of each epoch, kept beside the saved weights."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.epochs = json.loads(path.read_text()) if path.exists() else []

    def on_epoch_begin(self, epoch, logs=None):
        del self.epochs[epoch:]
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        entry = {name: round(float(v), 5) for name, v in (logs or {}).items()}
        entry["seconds"] = round(time.perf_counter() - self.started, 1)
        self.epochs.append(entry)
        self.path.write_text(json.dumps(self.epochs))

    @property
    def seconds(self):
        return round(sum(entry["seconds"] for entry in self.epochs), 1)


def train(model, name, data, epochs, optimizer, folder):
    """Trains a model, or goes on with it. Returns its `History`."""
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA is slower on these networks on a CPU.
    )
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    history = History(folder / "history.json")
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    model.fit(
        *data,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        callbacks=[backup, history],
        verbose=2,
    )
    return history


def main(arguments=None):
    options = parse_arguments(arguments)
    options.epochs = options.epochs or (1 if options.quick else 10)
    options.base_epochs = options.base_epochs or (1 if options.quick else 2)
    keras.utils.set_random_seed(options.seed)
    data, test = load_data(options.quick)
    steps = -(-len(data[0]) // BATCH_SIZE)

    model = nm.models.lenet()
    base = train(
        model,
        "base",
        data,
        options.base_epochs,
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                1e-3, options.base_epochs * steps
            )
        ),
        options.checkpoint,
    )
    hyper = nm.ManifoldHyperModel(
        model,
        nm.ImplicitField(seed=options.seed),
        nm.Sandwich(TRAINED[-1], 1.0, num_fixed=2, bands=1, seed=options.seed),
        distillation=0.0,
        seed=options.seed,
    )
    total = options.epochs * steps
    warm_up = min(100, total // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-6,
        total - warm_up,
        alpha=0.01,
        warmup_target=options.learning_rate,
        warmup_steps=warm_up,
    )
    field = train(
        hyper,
        "field",
        data,
        options.epochs,
        # The gradient is that of a sum over three sizes.
        keras.optimizers.Adam(schedule, global_clipnorm=3.0),
        options.checkpoint,
    )

    table = nm.sweep(hyper, *test, TRAINED + BELOW, batch_size=500)
    table.add("base", 1.0, model, *test, batch_size=500, verbose=0)
    print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "implicit_lenet.json"
    table.save(
        path,
        dataset="mnist",
        trained_range=[TRAINED[-1], 1.0],
        epochs=options.epochs,
        base_epochs=options.base_epochs,
        batch_size=BATCH_SIZE,
        learning_rate=options.learning_rate,
        seed=options.seed,
        quick=options.quick,
        field=hyper.field.get_config(),
        field_parameters=hyper.field.count_params(),
        seconds={"base": base.seconds, "field": field.seconds},
        history=field.epochs,
        **provenance(),
    )
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
