"""The manifold of a network beside its rivals and baselines, in one run.

Every method of a task starts from the same base network (untrained, or of
few epochs) and sees the same data, augmentation and number of optimizer
steps. A network trained by itself (`individual`, or `distilled` from the full
one) starts from scratch and gets as many steps as the base and the method
together; so does one that is pruned, before the cut or (`tuned`) before and
after it. Each method is written to the result file when it is done and left
out where the file has it; a run that was cut off goes on from its last epoch.
Batch norm is trained by TensorFlow's fused kernel, see `fused.py`.

    python benchmarks/every_width.py mnist-lenet --seed 1
    python benchmarks/every_width.py cifar10-resnet20 --methods anchored

Reports test accuracy with the network's parameters and MACs, the floor (all
that morphs silenced), stored parameters and the time of a step.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from data import load
from fused import use_fused_batch_norm
from timing import alternate

import keras_neumeta as nm
from keras_neumeta.provenance import provenance

BATCH_SIZE = 128
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SWITCHES = (1.0, 0.75, 0.5, 0.25)
# Where kept statistics are compared with those measured anew.
BETWEEN = (0.9, 0.7, 0.65, 0.6, 0.55, 0.45, 0.4, 0.35, 0.3)
# How networks of fields that were trained with noise are averaged.
AVERAGE = {"samples": 50, "noise": 0.5}


@dataclasses.dataclass(frozen=True)
class Task:
    """What all methods have in common.

    Attributes:
        dataset: Name in tensorflow-datasets.
        network: Function that builds the target.
        base_epochs, epochs: Of the base, and of each method after it.
        rate: Learning rate at the start of its cosine.
        adam: Whether to use Adam, else SGD with momentum.
        augment: Whether to crop and flip at random.
        layers: The layers that may change; see `trace`.
        pretrained: Weights of the base, beside the prepared data sets.
        frozen: Name of the last of the base's layers that stay as they are,
            all before it among them; steps are timed without them. Default:
            none stay.
        trained, tested: Ratios: the range of the training, and the test.
        beyond: Ratios between and below those, tested too.
    """

    dataset: str
    network: object
    base_epochs: int
    epochs: int
    rate: float
    adam: bool = False
    augment: bool = True
    layers: tuple | None = None
    pretrained: str | None = None
    frozen: str | None = None
    trained: tuple = (0.25, 1.0)
    tested: tuple = (1.0, 0.75, 0.5, 0.25)
    beyond: tuple = (0.6, 0.1875)


def _resnet(depth, shortcut="conv"):
    return functools.partial(
        nm.models.cifar_resnet, depth=depth, shortcut=shortcut
    )


TASKS = {
    "mnist-lenet": Task(
        "mnist",
        nm.models.lenet,
        base_epochs=0,
        epochs=5,
        rate=1e-3,
        adam=True,
        augment=False,
        tested=(1.0, 0.75, 0.5, 0.375, 0.25),
    ),
    "cifar10-resnet8": Task("cifar10", _resnet(8), 0, 8, 0.3),
    "cifar10-resnet20": Task("cifar10", _resnet(20), 0, 6, 0.3),
    # Every inner width of every block; the residual stream stays.
    "cifar10-resnet20-inner": Task(
        "cifar10", _resnet(20), 0, 6, 0.3, layers=("stage*_conv1",)
    ),
    # What Neural Metamorphosis (ECCV 2024) morphs, and its trained range: one
    # block of a trained network, all before it as it is.
    "cifar10-resnet20-last": Task(
        "cifar10",
        _resnet(20, "pad"),
        0,
        6,
        0.03,
        layers=("stage3_block2_conv1",),
        pretrained="resnet20_cifar10.npz",
        frozen="stage3_block1_relu2",
        trained=(0.5, 1.0),
    ),
}


def _of_all(seed, low):
    """Random sizes from all of the range, as for fields that interpolate."""
    return nm.Sandwich(low, max_random=1.0, seed=seed)


# Each method by the arguments of its hypermodel, for a seed and the range.
FIELDS = {
    "anchored": lambda seed, low: {"sampler": nm.Sandwich(low, seed=seed)},
    "slimmable": lambda seed, low: {
        "field": nm.SlimmableField(),
        # As published: four widths a step, no labels for the smaller ones.
        "sampler": nm.Sandwich(
            low, num_fixed=2, num_random=2, bands=1, seed=seed
        ),
        "distillation": 1.0,
        "ratio_power": 0.0,
    },
    "switchable": lambda seed, low: {
        "field": nm.SlimmableField(switches=SWITCHES),
        "sampler": nm.Switches(tuple(r for r in SWITCHES if r >= low)),
        "distillation": 0.0,
        "ratio_power": 0.0,
    },
    "integral": lambda seed, low: {
        "field": nm.IntegralField(),
        "sampler": nm.Uniform(low, seed=seed),
        "distillation": 0.0,
    },
    "implicit": lambda seed, low: {
        "field": nm.ImplicitField(imitation_steps=0, seed=seed),
        "sampler": _of_all(seed, low),
        "distillation": 0.0,
        "reconstruction": 1.0,
    },
}


def _imitating(noise):
    """Begins at a trained target's weights rather than at random ones."""
    return lambda seed, low: {
        "field": nm.ImplicitField(
            width=128, num_frequencies=6, imitation_steps=1000, seed=seed
        ),
        "sampler": _of_all(seed, low),
        "noise": noise,
        "reconstruction": 1.0,
    }


IMITATING = {
    "implicit imitating": _imitating(noise=1.0),
    "implicit imitating, noise 2": _imitating(noise=2.0),
}
# Factors of the learning rate: a small step of a network over coordinates
# moves all weights away from where they began.
PACES = dict.fromkeys(IMITATING, 0.1)
SINGLE = ("individual", "distilled")
PRUNED = ("l1", "l2", "taylor", "hessian", "random")
# With as many steps of training after the cut as a field has.
TUNED = tuple(f"{criterion} tuned" for criterion in PRUNED)


def _sampled(sampler):
    return lambda seed, low: {"sampler": sampler(seed, low)}


def _field(noise=0.0, smooth=True, **changes):
    def arguments(seed, low):
        # Where the change allows it.
        levels = (0.25,) if low <= 0.25 and not changes.get("stretch") else ()
        return {
            "sampler": _of_all(seed, low),
            "field": nm.AnchoredField(**{"levels": levels, **changes}),
            "noise": noise,
            "smooth": smooth,
        }

    return arguments


def _changed(**changes):
    """Random sizes of all, a level whatever it stores, arguments changed."""
    return lambda seed, low: {**_field()(seed, low), **changes}


# One part of `random sizes of all` changed at a time.
ABLATIONS = {
    "no smoothing": _changed(smooth=False),
    "no distillation": _changed(distillation=0.0),
    "distillation 1": _changed(distillation=1.0),
    "stretch 1, noise 0.5": _field(stretch=1.0, noise=0.5),
    "stretch 1, noise 1": _field(stretch=1.0, noise=1.0),
    "stretch 1, noise 2": _field(stretch=1.0, noise=2.0),
    # The range of the other tasks, where that of the task is smaller.
    "down to a quarter": _sampled(lambda seed, low: _of_all(seed, 0.25)),
    "reconstruction 1": _changed(reconstruction=1.0),
    "reconstruction 10": _changed(reconstruction=10.0),
    "reconstruction 100": _changed(reconstruction=100.0),
    "weight norm 1e-4": _changed(weight_norm=1e-4),
    "one uniform size": _sampled(lambda seed, low: nm.Uniform(low, seed=seed)),
    "full size only": _sampled(lambda seed, low: nm.Switches((1.0,))),
    "two fixed sizes": _sampled(
        lambda seed, low: nm.Sandwich(low, num_fixed=2, seed=seed)
    ),
    "one band": _sampled(
        lambda seed, low: nm.Sandwich(low, bands=1, max_random=1.0, seed=seed)
    ),
    "random sizes of all": _field(),
    "small random sizes": _sampled(
        lambda seed, low: nm.Sandwich(
            low, bands=1, max_random=low**0.5, seed=seed
        )
    ),
    "no random size": _sampled(
        lambda seed, low: nm.Sandwich(low, num_random=0, seed=seed)
    ),
    # Trained with a moving average of the weights, `optimizer`.
    "EMA": _changed(),
    "ratio power 0": _changed(ratio_power=0.0),
    "ratio power 2": _changed(ratio_power=2.0),
    "sums as they are": _field(scale=0.0),
    "scale 0.5": _field(scale=0.5),
    "stretch 0.5": _field(stretch=0.5),
    "stretch 1": _field(stretch=1.0),
    "stretch 1, no smoothing": _field(stretch=1.0, smooth=False),
    "stretch 1, cubic": _field(stretch=1.0, interpolation="cubic"),
    "size knots": _field(size_knots=SWITCHES[:0:-1]),
    "no level": _field(levels=()),
}
MANIFOLDS = {**FIELDS, **IMITATING, **ABLATIONS}
DEFAULT = (*FIELDS, *SINGLE, *PRUNED, "l1 tuned")
ALL = (*MANIFOLDS, *SINGLE, *PRUNED, *TUNED)


def batches(x, y, augment, seed, body=None):
    """Shuffled batches, cropped and flipped at random.

    Args:
        x, y: Images and labels.
        augment, seed: As in `Task`.
        body: Model whose outputs stand in place of the images.
    """

    def change(image, label):
        image = tf.image.resize_with_crop_or_pad(image, 40, 40)
        image = tf.image.random_crop(image, (32, 32, 3))
        return tf.image.random_flip_left_right(image), label

    data = tf.data.Dataset.from_tensor_slices((x, y))
    data = data.shuffle(len(x), seed=seed, reshuffle_each_iteration=True)
    if augment:
        data = data.map(change, num_parallel_calls=2)
    data = data.batch(BATCH_SIZE, drop_remainder=True)
    if body is not None:
        data = data.map(lambda x, y: (body(x, training=False), y))
    data = data.prefetch(4)
    # The end of each epoch waits for the next turn of the tuner of tf.data,
    # up to as long as the epoch took.
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def compiled(model, optimizer="sgd"):
    model.compile(optimizer, LOSS, metrics=["accuracy"])
    return model


class Bench:
    """A task with its data, its base network and its checkpoints."""

    def __init__(self, name, options):
        self.name, self.task, self.options = name, TASKS[name], options
        changes = {
            key: value
            for key in ("base_epochs", "epochs", "rate")
            if (value := getattr(options, key)) is not None
        }
        self.task = dataclasses.replace(self.task, **changes)
        self.train, self.test = load(self.task.dataset)
        if options.examples:
            self.train = tuple(v[: options.examples] for v in self.train)
        self.body = None
        if self.task.frozen:
            # Once a step rather than once for each size of a step.
            whole = self.pretrained()
            output = whole.get_layer(self.task.frozen).output
            self.body = keras.Model(whole.input, output)
            self.tail = keras.Model(output, whole.output)
            self.test = self.through(*self.test)
        self.num_frozen = self.body.count_params() if self.body else 0
        self.steps = len(self.train[0]) // BATCH_SIZE
        budget = (
            f"{self.task.base_epochs}+{self.task.epochs}-{self.task.rate:g}"
            f"-{len(self.train[0])}"
        )
        self.folder = options.work / f"{name}-{options.seed}-{budget}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def through(self, x, y):
        """What the layers that stay make of the images, if there are any."""
        if self.body is not None:
            x = self.body.predict(x, batch_size=500, verbose=0)
        return x, y

    def examples(self, number):
        """The first ones of the training."""
        return self.through(*(part[:number] for part in self.train))

    def batches(self):
        """Batches of the training, through the layers that stay."""
        return batches(
            *self.train, self.task.augment, self.options.seed, self.body
        )

    def fit(self, model, epochs, name, pace=1.0):
        """Trains, from the last checkpoint of that name if there is one."""
        compiled(model, self.optimizer(epochs, name, pace)).fit(
            self.batches(),
            epochs=epochs,
            shuffle=False,  # The dataset shuffles itself.
            verbose=2,
            callbacks=[
                keras.callbacks.BackupAndRestore(
                    self.folder / f"{name}.ckpt", double_checkpoint=True
                )
            ],
        )
        return model

    def optimizer(self, epochs, name, pace):
        """That of the task, at a share of its learning rate."""
        task, steps = self.task, epochs * self.steps
        rate = task.rate * pace
        schedule = keras.optimizers.schedules.CosineDecay
        ema = {"use_ema": name == "EMA"}
        if task.adam:
            return keras.optimizers.Adam(schedule(rate, steps), **ema)
        warm_up = self.steps // 2
        return keras.optimizers.SGD(
            schedule(
                0.0,
                steps - warm_up,
                warmup_target=rate,
                warmup_steps=warm_up,
            ),
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            **ema,
        )

    def base(self):
        """The network that all methods start from."""
        keras.utils.set_random_seed(self.options.seed)
        if self.body is not None:
            model = keras.models.clone_model(self.tail)
            model.set_weights(self.tail.get_weights())
            return model
        if self.task.pretrained:
            return self.pretrained()
        return self.trained("base", self.task.network, self.task.base_epochs)

    def pretrained(self):
        folder = pathlib.Path(os.environ["TFDS_DATA_DIR"]).parent
        return self.task.network(weights=folder / self.task.pretrained)

    def whole(self, model):
        """A network with the layers that stay before it, if there are any."""
        if self.body is None:
            return model
        return keras.Model(self.body.input, model(self.body.output))

    def trained(self, name, make, epochs):
        """A network that is trained once, untrained for no epochs."""
        path = self.folder / f"{name}.keras"
        if not path.exists():
            print(f"== {name}", flush=True)
            model = make()
            if epochs:
                self.fit(model, epochs, name)
            model.save(path)
        return keras.saving.load_model(path)

    def full(self):
        """A full-size network with all the steps of base and method."""
        if self.task.pretrained:
            return self.base()
        return self.alone("individual", 1.0)

    def before_cut(self):
        """The network that is cut and trained on, and the epochs left."""
        epochs = self.task.epochs
        if self.task.pretrained or self.task.base_epochs:
            return self.base(), epochs
        before = epochs // 2
        model = self.trained("before-cut", self.base, before)
        return model, epochs - before

    def fresh(self, ratio):
        """A network of that size with new initial weights."""
        graph = nm.trace(self.base(), self.task.layers)
        keras.utils.set_random_seed(self.options.seed)
        small = nm.graph.resize(graph, graph.sizes(ratio))
        return keras.models.clone_model(small)

    def alone(self, method, ratio):
        """A network of that size, trained by itself from scratch."""
        if self.task.pretrained:
            raise ValueError(
                f"Task '{self.name}' has a pretrained base, with more steps "
                f"than '{method}' would get from scratch."
            )
        model = trained = self.fresh(ratio)
        path = self.folder / f"{method}-{ratio:g}.weights.h5"
        if path.exists():
            model.load_weights(path)
            return model
        print(f"== {path.stem}", flush=True)
        if method == "distilled":
            trained = Distilled(model, self.full())
        epochs = self.task.base_epochs + self.task.epochs
        self.fit(trained, epochs, path.stem)
        model.save_weights(path)
        return model

    def step_time(self, model):
        """Seconds of a step relative to one of the network, side by side."""
        x, y = self.examples(BATCH_SIZE)
        base = compiled(keras.models.clone_model(self.base()))
        compiled(model)
        for network in (base, model):
            network.train_on_batch(x, y)
        return alternate(
            lambda: model.train_on_batch(x, y),
            lambda: base.train_on_batch(x, y),
        )[2]

    def accuracy(self, model):
        result = compiled(model).evaluate(
            *self.test, batch_size=500, verbose=0, return_dict=True
        )
        return round(100 * result["accuracy"], 2)

    def recalibrated(self, model, inputs):
        """Accuracy with statistics measured anew; the model stays as it is."""
        anew = keras.models.clone_model(model)
        anew.set_weights(model.get_weights())
        nm.calibrate(anew, inputs)
        return self.accuracy(anew)

    def as_trained(self):
        """Some batches of inputs as in training, to measure statistics."""
        return self.batches().take(40).cache()

    def row(self, ratio, model, **more):
        graph = nm.trace(self.whole(model))
        row = {
            "ratio": ratio,
            "accuracy": self.accuracy(model),
            "parameters": graph.count_params(),
            "macs": graph.count_macs(),
            **more,
        }
        print(json.dumps(row), flush=True)
        return row

    def hypermodel(self, method, **options):
        seed = self.options.seed
        keras.utils.set_random_seed(seed)
        return nm.ManifoldHyperModel(
            self.base(),
            seed=seed,
            layers=self.task.layers,
            **MANIFOLDS[method](seed, self.task.trained[0]),
            **options,
        )

    def manifold(self, method):
        path = self.folder / f"{method.replace(' ', '-')}.keras"
        step = self.step_time(self.hypermodel(method, imitate=False))
        if path.exists():
            hyper = keras.saving.load_model(path)
        else:
            hyper = self.hypermodel(method)
            pace = PACES.get(method, 1.0)
            self.fit(hyper, self.task.epochs, path.stem, pace).save(path)
        rows, inputs = [], self.as_trained()
        for ratio in (*self.task.tested, *self.task.beyond):
            model = hyper.morph(ratio)
            more = {"recalibrated": self.recalibrated(model, inputs)}
            if hyper.noise:
                average = hyper.morph(ratio, **AVERAGE)
                more["averaged"] = self.accuracy(average)
            rows.append(self.row(ratio, model, **more))
        between = []
        for ratio in BETWEEN:
            if ratio > self.task.trained[0]:
                model = hyper.morph(ratio)
                accuracy = self.accuracy(model)
                anew = self.recalibrated(model, inputs)
                between.append([ratio, accuracy, anew])
        floor = nm.sweep(compiled(hyper), *self.test, [], batch_size=500)
        return {
            "rows": rows,
            # Ratio, accuracy, accuracy with statistics measured anew.
            "between": between,
            "floor": round(100 * floor.rows[0]["accuracy"], 2),
            "stored": hyper.field.count_params() + self.num_frozen,
            "stored_statistics": sum(
                layer.count_params()
                for layer in (hyper.statistics, *hyper.moments)
            ),
            "step_time": step,
        }

    def single(self, method):
        """Each size trained by itself, from scratch."""
        rows, times = [], []
        for ratio in self.task.tested:
            model = self.alone(method, ratio)
            rows.append(self.row(ratio, model))
            if method == "distilled":
                model = Distilled(model, self.full())
            times.append(self.step_time(model))
        return {
            "rows": rows,
            "stored": sum(row["parameters"] for row in rows),
            "step_time": sum(times),
        }

    def pruned(self, method):
        """Channels cut off: then trained on, or after all the training."""
        criterion = method.removesuffix(" tuned")
        base, epochs = (
            self.before_cut() if method in TUNED else (self.full(), 0)
        )
        size = 1 if criterion == "hessian" else BATCH_SIZE
        data = tf.data.Dataset.from_tensor_slices(self.examples(1024))
        data = data.batch(size)
        layers = self.task.layers
        importance = nm.channel_importance(base, criterion, data, LOSS, layers)
        rows = []
        for ratio in self.task.tested:
            keep = nm.largest_channels(
                base, ratio, layers, importance=importance
            )
            model = nm.cut(base, keep)
            if epochs:
                key = f"{criterion}-tuned-{ratio:g}"
                print(f"== {key}", flush=True)
                self.fit(model, epochs, key)
            rows.append(self.row(ratio, model))
        if method in TUNED:
            stored = sum(row["parameters"] for row in rows)
        else:
            stored = base.count_params() + self.num_frozen
        return {"rows": rows, "stored": stored}

    def budget(self):
        """What all the methods of a file have in common."""
        return {
            "base_epochs": self.task.base_epochs,
            "epochs": self.task.epochs,
            "rate": self.task.rate,
            "examples": len(self.train[0]),
            "pretrained": self.task.pretrained,
        }

    def run(self, method):
        start = time.perf_counter()
        kind = (
            self.manifold
            if method in MANIFOLDS
            else self.single
            if method in SINGLE
            else self.pruned
        )
        return {
            **kind(method),
            "seed": self.options.seed,
            **self.budget(),
            "pace": PACES.get(method, 1.0),
            "minutes": round((time.perf_counter() - start) / 60, 1),
            **provenance(),
        }


class Distilled(keras.Model):
    """Learns from the outputs of a teacher alone."""

    def __init__(self, student, teacher):
        super().__init__()
        teacher.trainable = False
        self.student = student
        # Not one of this model's own layers, which Keras would save.
        self._teach = lambda x: teacher(x, training=False)
        self.built = True

    def call(self, x, training=False):
        return self.student(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        soft = keras.ops.softmax(self._teach(x))
        return keras.ops.mean(
            keras.losses.categorical_crossentropy(
                keras.ops.stop_gradient(soft), y_pred, from_logits=True
            )
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=ALL,
        metavar="METHOD",
        help="default: all but the ablations (and, where the base is "
        "pretrained,\nnetworks from scratch). One of:\n" + ", ".join(ALL),
    )
    parser.add_argument("--base-epochs", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, help="fewer, for a try")
    parser.add_argument(
        "--work",
        type=pathlib.Path,
        default=pathlib.Path("outputs/every_width"),
        help="folder for networks and checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("benchmarks/results"),
    )
    options = parser.parse_args()
    use_fused_batch_norm()
    path = options.output / f"every_width_{options.task}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    bench = Bench(options.task, options)
    budget = bench.budget()
    for run in runs:
        other = {k: run.get(k) for k in budget if run.get(k) != budget[k]}
        if other:
            parser.error(
                f"'{path}' holds runs of another budget ({other}). Give the "
                "same, or another --output."
            )
    methods = options.methods or [
        method
        for method in DEFAULT
        if not (bench.task.pretrained and method in SINGLE)
    ]
    for method in methods:
        if (method, options.seed) in {(r["method"], r["seed"]) for r in runs}:
            print(f"== {method}, seed {options.seed}: is in '{path}' already")
            continue
        print(f"== {method}", flush=True)
        runs.append({"method": method, **bench.run(method)})
        options.output.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"task": options.task, "runs": runs}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
