"""Every width of a CIFAR-10 ResNet: the manifold, its rivals and baselines.

Each method runs by itself, is written to the result file at once, and left
out where the file has it; a run that was cut off goes on from its last epoch.
All methods start from one base network and train for `--epochs`; a network
trained by itself (`individual`, `distilled`) trains from scratch for as many
steps as the base and the method together.

    python benchmarks/cifar.py --network resnet8 --methods anchored slimmable
    python benchmarks/cifar.py --network resnet20

Reports test accuracy with the network's parameters and MACs, the floor (all
that morphs silenced), stored parameters and seconds per step.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from provenance import provenance

import keras_neumeta as nm

BATCH_SIZE = 128
RATIOS = (1.0, 0.75, 0.5, 0.375, 0.25)
DEPTHS = {"resnet8": 8, "resnet20": 20}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SWITCHES = (1.0, 0.75, 0.5, 0.25)

# Each a function of the seed: arguments of the hypermodel.
MANIFOLDS = {
    "anchored": lambda seed: {"field": nm.AnchoredField(seed=seed)},
    "slimmable": lambda seed: {"field": nm.SlimmableField(seed=seed)},
    "switchable": lambda seed: {
        "field": nm.SlimmableField(switches=SWITCHES, seed=seed),
        "sampler": nm.Switches(SWITCHES),
        "distillation": 0.0,
    },
    "integral": lambda seed: {
        "field": nm.IntegralField(seed=seed),
        "sampler": nm.Uniform(seed=seed),
        "distillation": 0.0,
    },
    # Trials.
    "anchored-knots": lambda seed: {
        "field": nm.AnchoredField(size_knots=(0.25, 0.5, 0.75), seed=seed)
    },
    "anchored-half": lambda seed: {
        "field": nm.AnchoredField(stretch=0.5, seed=seed)
    },
    "slimmable-knots": lambda seed: {
        "field": nm.SlimmableField(switches=SWITCHES, seed=seed)
    },
    "anchored-labels": lambda seed: {
        "field": nm.AnchoredField(seed=seed),
        "distillation": 0.5,
    },
    "anchored-noise": lambda seed: {
        "field": nm.AnchoredField(seed=seed),
        "noise": 0.5,
    },
}
SINGLE = ("individual", "distilled")
PRUNED = ("l1", "l2", "taylor", "hessian", "random")


def load():
    import tensorflow_datasets as tfds

    splits = tfds.load(
        "cifar10", split=["train", "test"], batch_size=-1, as_supervised=True
    )
    return [
        (x.astype("float32") / 255.0, y.astype("int32"))
        for x, y in tfds.as_numpy(splits)
    ]


def batches(x, y, seed):
    """Shuffled batches, cropped and flipped at random."""

    def augment(image, label):
        image = tf.image.resize_with_crop_or_pad(image, 40, 40)
        image = tf.image.random_crop(image, (32, 32, 3))
        return tf.image.random_flip_left_right(image), label

    data = tf.data.Dataset.from_tensor_slices((x, y))
    data = data.shuffle(len(x), seed=seed, reshuffle_each_iteration=True)
    data = data.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return data.batch(BATCH_SIZE, drop_remainder=True).prefetch(4)


def compiled(model, epochs, steps, learning_rate, weight_decay):
    warm_up = steps // 2
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        epochs * steps - warm_up,
        warmup_target=learning_rate,
        warmup_steps=warm_up,
    )
    model.compile(
        keras.optimizers.SGD(
            schedule,
            momentum=0.9,
            nesterov=True,
            weight_decay=weight_decay,
        ),
        LOSS,
        metrics=["accuracy"],
    )
    return model


class Clock(keras.callbacks.Callback):
    """Seconds per step, without the first step of each epoch."""

    def __init__(self):
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch:
            self.seconds.append(time.perf_counter() - self.start)


class Bench:
    def __init__(self, options):
        self.options = options
        self.train, self.test = load()
        if options.examples:
            self.train = tuple(v[: options.examples] for v in self.train)
            self.test = tuple(v[: options.examples] for v in self.test)
        self.steps = len(self.train[0]) // BATCH_SIZE
        self.folder = options.work / f"{options.network}-{options.seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def build(self, seed=None):
        keras.utils.set_random_seed(self.options.seed if seed is None else seed)
        depth = DEPTHS[self.options.network]
        return nm.models.cifar_resnet(depth, shortcut="conv")

    def fit(self, model, epochs, name, learning_rate):
        """Trains, from the last checkpoint of that name if there is one."""
        options = self.options
        compiled(model, epochs, self.steps, learning_rate, options.weight_decay)
        clock = Clock()
        model.fit(
            batches(*self.train, options.seed),
            epochs=epochs,
            shuffle=False,  # The dataset shuffles itself.
            verbose=2,
            callbacks=[
                keras.callbacks.BackupAndRestore(self.folder / f"{name}.ckpt"),
                clock,
            ],
        )
        return float(np.median(clock.seconds)) if clock.seconds else None

    def base(self):
        """The network that all methods start from."""
        path = self.folder / "base.keras"
        if not path.exists():
            print("== base", flush=True)
            model = self.build()
            seconds = self.fit(
                model, self.options.base_epochs, "base", self.options.rate
            )
            (self.folder / "base.json").write_text(json.dumps(seconds))
            model.save(path)
        seconds = json.loads((self.folder / "base.json").read_text())
        return keras.saving.load_model(path), seconds

    def evaluate(self, model):
        model.compile(loss=LOSS, metrics=["accuracy"])
        result = model.evaluate(
            *self.test, batch_size=500, verbose=0, return_dict=True
        )
        return 100 * result["accuracy"]

    def row(self, method, ratio, model, **more):
        graph = nm.trace(model)
        row = {
            "method": method,
            "ratio": ratio,
            "accuracy": round(self.evaluate(model), 2),
            "parameters": graph.count_params(),
            "macs": graph.count_macs(),
            **more,
        }
        print(json.dumps(row), flush=True)
        return row

    def manifold(self, name):
        base, base_seconds = self.base()
        options = self.options
        keras.utils.set_random_seed(options.seed)
        hyper = nm.ManifoldHyperModel(
            base, seed=options.seed, **MANIFOLDS[name](options.seed)
        )
        stored = (
            sum(int(np.prod(v.shape)) for v in hyper.field.trainable_variables)
            + hyper.statistics.count_params()
        )
        seconds = self.fit(hyper, options.epochs, name, options.field_rate)
        hyper.save(self.folder / f"{name}.keras")
        rows = []
        for ratio in (*RATIOS, *options.more_ratios):
            model = hyper.morph(ratio)
            anew = hyper.morph(ratio)
            nm.calibrate(anew, self.train[0][:5000], batch_size=250)
            rows.append(
                self.row(
                    name,
                    ratio,
                    model,
                    recalibrated=round(self.evaluate(anew), 2),
                    stored=stored,
                    step=seconds and seconds / base_seconds,
                )
            )
        table = nm.sweep(_evaluated(hyper), *self.test, [], batch_size=500)
        floor = [row for row in table.rows if row["method"] == "floor"][0]
        rows.append(
            {
                "method": f"{name} floor",
                "ratio": None,
                "accuracy": round(100 * floor["accuracy"], 2),
            }
        )
        return rows

    def single(self, name):
        """Each size trained by itself, from scratch."""
        base, base_seconds = self.base()
        options = self.options
        rows = []
        for ratio in options.ratios:
            sizes = nm.trace(base).sizes(ratio)
            keras.utils.set_random_seed(options.seed)
            # A clone draws its initial weights.
            model = keras.models.clone_model(
                nm.graph.resize(nm.trace(base), sizes)
            )
            epochs = options.base_epochs + options.epochs
            key = f"{name}-{ratio:g}"
            print(f"== {key}", flush=True)
            if name == "distilled":
                base.trainable = False
                trained = _Distilled(model, base)
            else:
                trained = model
            seconds = self.fit(trained, epochs, key, options.rate)
            rows.append(
                self.row(
                    name,
                    ratio,
                    model,
                    stored=model.count_params(),
                    step=seconds and seconds / base_seconds,
                )
            )
        return rows

    def pruned(self, criterion):
        """Channels cut off the base, no training after."""
        base, _ = self.base()
        x, y = (v[:1024] for v in self.train)
        size = 1 if criterion == "hessian" else BATCH_SIZE
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(size)
        importance = nm.channel_importance(
            base,
            criterion,
            data,
            LOSS,
        )
        return [
            self.row(
                criterion,
                ratio,
                nm.cut(base, ratio, importance),
                stored=base.count_params(),
            )
            for ratio in self.options.ratios
        ]


class _Distilled(keras.Model):
    """Learns from the outputs of a teacher alone."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self._teacher = student, [teacher]
        self.built = True

    def call(self, x, training=False):
        return self.student(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, **kwargs):
        soft = keras.ops.softmax(self._teacher[0](x, training=False))
        return keras.ops.mean(
            keras.losses.categorical_crossentropy(
                keras.ops.stop_gradient(soft), y_pred, from_logits=True
            )
        )


def _evaluated(hyper):
    hyper.compile(
        loss=LOSS,
        metrics=["accuracy"],
    )
    return hyper


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--network", choices=DEPTHS, default="resnet8")
    parser.add_argument(
        "--methods",
        nargs="*",
        default=[
            "anchored",
            "slimmable",
            "switchable",
            "integral",
            *PRUNED,
            *SINGLE,
        ],
    )
    parser.add_argument("--base-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--field-rate", type=float, default=0.05)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument(
        "--ratios", type=float, nargs="*", default=[1.0, 0.75, 0.5, 0.25]
    )
    parser.add_argument(
        "--more-ratios", type=float, nargs="*", default=[0.6, 0.1875]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, help="fewer, for a try")
    parser.add_argument(
        "--work",
        type=pathlib.Path,
        default=pathlib.Path("outputs/cifar"),
        help="checkpoints",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("benchmarks/results"),
    )
    options = parser.parse_args()
    path = options.output / f"cifar_{options.network}.json"
    result = {"runs": {}}
    if path.exists():
        result = json.loads(path.read_text())
    bench = Bench(options)
    for method in options.methods:
        key = f"{method}-{options.seed}"
        if key in result["runs"]:
            continue
        print(f"== {method}", flush=True)
        start = time.perf_counter()
        if method in MANIFOLDS:
            rows = bench.manifold(method)
        elif method in SINGLE:
            rows = bench.single(method)
        else:
            rows = bench.pruned(method)
        result["runs"][key] = {
            "rows": rows,
            "seed": options.seed,
            "base_epochs": options.base_epochs,
            "epochs": options.epochs,
            "examples": len(bench.train[0]),
            "minutes": round((time.perf_counter() - start) / 60, 1),
            **provenance(),
        }
        options.output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
