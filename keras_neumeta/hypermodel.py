"""`ManifoldHyperModel`: one network, trained as every size of itself."""

import inspect

import keras
import numpy as np
from keras import ops

from keras_neumeta import samplers
from keras_neumeta.backends import GradientStep
from keras_neumeta.distillation import (
    check_distillation_loss,
    distillation_losses,
    per_output,
)
from keras_neumeta.fields import (
    AnchoredField,
    ImplicitField,
    IntegralField,
    SlimmableField,
    WeightField,
)
from keras_neumeta.fields.anchored import default_levels
from keras_neumeta.fields.interpolation import is_static
from keras_neumeta.graph import (
    assign,
    layer_patterns,
    resize,
    sizes_at,
    trace,
    with_depth,
)
from keras_neumeta.input_moments import InputMoments
from keras_neumeta.morphing import choose_sizes, morph
from keras_neumeta.network import Networks
from keras_neumeta.reduction import can_follow
from keras_neumeta.serialization import (
    FILE_VERSION,
    checked_config,
    load_generator,
    register_serializable,
    save_generator,
)
from keras_neumeta.smoothing import smooth as smooth_channels
from keras_neumeta.smoothing import sort_channels
from keras_neumeta.statistics import StatisticsField
from keras_neumeta.targets import check_depth, check_target, warn_of_ignored

_FIELDS = {
    "anchored": lambda seed, graph, min_ratio: AnchoredField(
        levels=default_levels(graph, min_ratio)
    ),
    "implicit": lambda seed, graph, min_ratio: ImplicitField(seed=seed),
    "integral": lambda seed, graph, min_ratio: IntegralField(),
    "slimmable": lambda seed, graph, min_ratio: SlimmableField(),
}
_SAMPLERS = {
    "sandwich": samplers.Sandwich,
    "uniform": samplers.Uniform,
    "independent": samplers.Independent,
}


@register_serializable
class ManifoldHyperModel(GradientStep, keras.Model):
    """Learns the weight manifold of a network: all its sizes at once.

    Each training step draws sizes, generates the weights of these sizes from
    the weight field, runs the target with them and updates the field by the
    gradient of the sum of their losses (`loss` in the logs; `val_loss` is of
    the full size alone). `morph` then gives a plain network of any size.

    The given model is copied, never changed. `evaluate` and `predict` use the
    full size; `EvaluateSizes` evaluates others while training.

    On several devices (`keras.distribution` on JAX, `tf.distribute` on
    TensorFlow, processes of `torch.distributed` on PyTorch) all draw the same
    sizes, and each learns from its part of the batch.

    Files hold all that training has learned and drawn, so that a loaded model
    goes on as if nothing had happened. `load_weights` restores the optimizer
    only if it is built: `hyper.optimizer.build(hyper.trainable_variables)`.

    Source: Neural Metamorphosis (Yang and Wang, ECCV 2024).

    Args:
        model: The target: a built Sequential or functional `keras.Model`,
            trained or not.
        field: A `WeightField`, or `"anchored"`, `"implicit"`, `"slimmable"`,
            `"integral"`. Anchored: `AnchoredField(levels=(0.25,))`, with
            corrections of a quarter-size network's own, or without levels where
            the sampler draws no such size or they would store more than a
            tenth of the parameters.
        sampler: A `SizeSampler`, `"sandwich"`, `"uniform"`, or
            `"independent"` to train for a ratio per channel group.
        layers: The layers whose channels may change: names, patterns such as
            `"stage3*"`, or layers of the model; see `trace`. Default: all.
        distillation: Share of in-place distillation in the loss of the
            smaller sizes of a step, in [0, 1]: at 1 they learn from the
            outputs of the largest size alone, at 0 from the labels alone.
            Default: 0.5, as the largest size is a poor teacher at first. No
            effect with a sampler that draws one size.
        ratio_power: The loss of each smaller size of a step counts by its
            ratio to this power. At 0, as much as that of the largest; the
            higher, the less the small sizes pull at the weights that they
            share with the large ones.
        reconstruction: Weight of the distance between the generated weights
            at full size and the target's own, beside the loss summed over
            the sizes of a step.
        weight_norm: Weight of the sum of the L2 norms of the generated
            weights.
        noise: Coordinate noise while training: uniform within this many
            channels (1 as published, 0 for none). The full size gets none.
            Teaches the field sizes below those trained, at some cost to the
            others; without it they follow from those trained, see `morph`.
            For fields whose neighbouring channels are alike:
            `AnchoredField(stretch=1)`, `ImplicitField`.
        min_depth: Whether networks of fewer residual blocks are learned too,
            and of how many at least: `morph(ratio, depth=2)` has two of the
            blocks that can be left out (those whose shortcut is the identity;
            `hyper.graph.summary()` names them). Every size of a step but the
            first then has a random number of blocks, the full width among
            them once more. Default: all blocks stay.
        smooth: Whether to permute the target's channels first: along a
            shortest path (`keras_neumeta.smooth`), or in the order that the
            field asks for.
        imitate: Whether a field that does not begin at the target's weights
            is brought near them first; see `ImplicitField`.
        distillation_loss: `"auto"` (soft cross-entropy where the compiled
            loss is a cross-entropy, else the mean squared error), or a
            function, `keras.losses.Loss` or name of a loss of the teacher's
            and the student's output.
        seed: Seed of the noise, the sampler and the field, where these are
            given by name.

    Raises:
        TypeError, ValueError: If an argument cannot be used; the message
            says why.

    Example:

    ```python
    hyper = keras_neumeta.ManifoldHyperModel(model)
    hyper.compile("adam", loss, metrics=["accuracy"])
    hyper.fit(x, y, epochs=5)
    small = hyper.morph(ratio=0.25)
    ```
    """

    def __init__(
        self,
        model,
        field="anchored",
        sampler="sandwich",
        *,
        layers=None,
        distillation=0.5,
        ratio_power=1.0,
        reconstruction=0.0,
        weight_norm=0.0,
        noise=0.0,
        min_depth=None,
        smooth=True,
        imitate=True,
        distillation_loss="auto",
        seed=None,
        name=None,
        **kwargs,
    ):
        if layers is not None:
            layers = layer_patterns(layers)
        graph = trace(model, layers, blocks=min_depth is not None)
        if min_depth is not None:
            check_depth(graph, min_depth)
        check_target(graph)
        check_distillation_loss(distillation_loss)
        warn_of_ignored(model)
        weights = {
            "distillation": distillation,
            "ratio_power": ratio_power,
            "reconstruction": reconstruction,
            "weight_norm": weight_norm,
            "noise": noise,
        }
        for argument, value in weights.items():
            limit = 1.0 if argument == "distillation" else np.inf
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(
                    f"Argument `{argument}` must be a number. "
                    f"Received: {argument}={value!r}"
                )
            if not 0.0 <= value <= limit:
                raise ValueError(
                    f"Argument `{argument}` must be in [0, {limit:g}]. "
                    f"Received: {argument}={value}"
                )
        sampler = _by_name(
            "sampler", sampler, _SAMPLERS, samplers.SizeSampler, seed=seed
        )
        field = _by_name(
            "field",
            field,
            _FIELDS,
            WeightField,
            seed=seed,
            graph=graph,
            min_ratio=sampler.min_ratio,
        )
        # Layers cast what they compute with; the field stays in float32.
        kwargs.setdefault("dtype", model.dtype_policy)
        super().__init__(name=name, autocast=False, **kwargs)
        self.morphed_layers = layers
        self.distillation = float(distillation)
        self.ratio_power = float(ratio_power)
        self.reconstruction = float(reconstruction)
        self.weight_norm = float(weight_norm)
        self.noise = float(noise)
        self.min_depth = min_depth
        self.distillation_loss = distillation_loss
        self.seed = seed

        target = resize(graph, graph.full_sizes)
        assign(target, [ops.convert_to_numpy(v) for v in model.variables])
        if smooth and field.channel_order == "importance":
            target = sort_channels(target, layers=layers)
        elif smooth:
            target = smooth_channels(target, layers=layers)
        target.compiled = False
        self.graph = trace(target, layers, blocks=min_depth is not None)
        self.output_names = list(
            getattr(target, "output_names", None) or ["output"]
        )
        # `Networks` is no layer, which hides the target from Keras' tracking:
        # all that trains lives in the field, and the target's own variables
        # are never read.
        self.networks = Networks(self.graph)
        values = {"weight": [], "statistic": [], "state": []}
        for layout, variable in zip(
            self.graph.layouts, target.variables, strict=True
        ):
            values[layout.role].append(ops.convert_to_numpy(variable))

        self.field = field
        self.field.ratio_power = self.ratio_power
        self.sampler = sampler
        self.field.attach(self.graph, values["weight"])
        if imitate:
            self.field.imitate(values["weight"])
        # What interpolates, or is smooth, knows sizes in between by itself.
        follow = not (self.noise or field.stretch) and can_follow(self.graph)
        self.sampler.attach(self.graph, follow)
        fixed = sampler.static_ratios
        self.statistics = StatisticsField(
            sampler.knots,
            field.stretch,
            fixed=sorted(set(fixed)),
            turns=len(sampler.knots) / max(sampler.num_sizes - len(fixed), 1),
        )
        self.statistics.attach(
            self.graph, values["statistic"], values["weight"]
        )
        self.states = [
            self._constant("state", value) for value in values["state"]
        ]
        self.references = []
        if self.reconstruction:
            self.references = [
                self._constant("reference", value) for value in values["weight"]
            ]
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.moments = []
        fixed, limits, sources = (
            list(dict.fromkeys(map(self.graph.sizes, ratios)))
            for ratios in (
                sampler.static_ratios,
                sampler.limits,
                # Ratios of each group by itself can follow from all of them.
                sampler.static_ratios
                if follow and sampler.sources and not sampler.per_group
                else sampler.sources,
            )
        )
        # These also compute smaller sizes, and cannot measure for their own.
        mixed = set(limits) - {self.graph.sizes(sampler.min_ratio)}
        for sizes in fixed:
            moments = None
            if sizes in sources and (min_depth is None or sizes not in mixed):
                moments = InputMoments(name=f"moments_{len(self.moments)}")
                moments.attach(self.graph, sizes)
                self.moments.append(moments)
            self.networks.prepare(sizes, moments)
            if min_depth is not None:
                self.networks.prepare_within(sizes, moments)
        for sizes in limits:
            self.networks.prepare_within(sizes)
        self.networks.set_states(values["state"])
        self.trackers = {
            name: keras.metrics.Mean(name=name) for name in self._loss_terms()
        }
        self.built = True

    @property
    def target(self):
        """The plain model at full size, with the current weights."""
        return self.morph(ratio=1.0)

    def __dir__(self):
        # Keras saves all that `dir` names: the target, built when it is asked
        # for, would be in every file a second time.
        return [name for name in super().__dir__() if name != "target"]

    def _constant(self, name, value):
        """A variable that is not trained."""
        variable = self.add_weight(
            shape=value.shape,
            initializer="zeros",
            dtype=value.dtype.name,
            trainable=False,
            name=name,
        )
        variable.assign(value)
        return variable

    def _loss_terms(self):
        terms = ["task_loss"]
        several = self.sampler.num_sizes > 1 or self.min_depth is not None
        if self.distillation and several:
            terms.append("distillation_loss")
        if self.reconstruction:
            terms.append("reconstruction_loss")
        if self.weight_norm:
            terms.append("weight_norm_loss")
        return terms

    def call(self, inputs, training=False):
        """Runs the target at full size."""
        outputs, losses = self._run(
            self.graph.full_sizes,
            self.field.generate(self.graph.full_sizes),
            inputs,
            training,
        )
        for loss in losses:
            self.add_loss(loss)
        return outputs

    def _run(
        self,
        sizes,
        weights,
        inputs,
        training,
        states=None,
        limit=None,
        offsets=None,
    ):
        """Runs a size of the target; keeps its statistics and states."""
        if states is None:
            states = [ops.convert_to_tensor(v) for v in self.states]
        statistics = self.statistics.generate(sizes, weights, offsets)
        network = self.networks.at(sizes, limit)
        outputs, new_statistics, new_states, losses = network(
            weights, statistics, states, inputs, training, sizes
        )
        if training:
            self.statistics.update(
                sizes, weights, statistics, new_statistics, offsets
            )
            for variable, value in zip(self.states, new_states):
                variable.assign(value)
        return outputs, losses

    def draw_sizes(self):
        """The sizes of one step, the largest first.

        Returns:
            List of `(ratio, sizes, limit)`; see `sizes_of`.
        """
        ratios = self.sampler.sample()
        if self.min_depth is None:
            return [(ratio, *self.sizes_of(ratio)) for ratio in ratios]
        choices = len(self.graph.blocks) - self.min_depth + 1
        draws = keras.random.uniform((len(ratios),), seed=self.seed_generator)
        depths = ops.cast(ops.floor(draws * choices), "int32")
        return [
            (ratios[0], *self.sizes_of(ratios[0])),
            *(
                (ratio, *self.sizes_of(ratio, self.min_depth + depths[number]))
                for number, ratio in enumerate(ratios)
            ),
        ]

    def sizes_of(self, ratio, depth=None):
        """The sizes at a drawn ratio; see `SizeSampler.sample`.

        Args:
            ratio: As drawn.
            depth: Number of kept blocks, an integer tensor. Default: all.

        Returns:
            The sizes, static if the ratio is and no depth is given; and
            sizes that they do not exceed, or `None`.
        """
        limit = None
        if isinstance(ratio, tuple):
            ratio, limit = ratio[0], self.graph.sizes(ratio[1])
        if isinstance(ratio, float):
            sizes = self.graph.sizes(ratio)
            if depth is None:
                return sizes, limit
            limit = None if sizes == self.graph.full_sizes else sizes
            sizes = ops.convert_to_tensor(sizes, "int32")
        else:
            sizes = sizes_at(self.graph, ratio, limit)
        if depth is not None:
            sizes = with_depth(self.graph, sizes, depth)
        return sizes, limit

    def draw_offsets(self, sizes, noise=None, seed=None):
        """Coordinate noise for one size: a tensor per group, or `None`.

        Args:
            sizes: As for `WeightField.generate`.
            noise: Width of the noise in channels. Default: that of training.
            seed: `SeedGenerator`. Default: that of training.
        """
        noise = self.noise if noise is None else noise
        seed = self.seed_generator if seed is None else seed
        if not noise or (is_static(sizes) and sizes == self.graph.full_sizes):
            return None
        return [
            keras.random.uniform(
                (_width(group, sizes),),
                -0.5 * noise,
                0.5 * noise,
                seed=seed,
            )
            if group.morphable
            else ops.zeros((group.num_channels,))
            for group in self.graph.groups
        ]

    def manifold_loss(self, x, y=None, sample_weight=None):
        """The loss of one step, summed over the sizes that the sampler draws.

        The sum, not the mean: the largest size learns at the pace of a plain
        step with the same learning rate. Backend-neutral; the backend's
        `train_step` takes its gradient.

        Returns:
            The total loss, and the outputs of the largest size.
        """
        self._clear_losses()
        x = keras.tree.map_structure(
            lambda v: None if v is None else ops.convert_to_tensor(v), x
        )
        total, task_total, distillation_total = 0.0, 0.0, 0.0
        largest, full_weights = None, None
        drawn = self.draw_sizes()
        # All sizes see the same random numbers of the target's own layers,
        # or a smaller one would learn from the outputs of another image.
        states = [ops.copy(v) for v in self.states]
        for ratio, sizes, limit in drawn:
            offsets = self.draw_offsets(sizes)
            weights = self.field.generate(sizes, offsets)
            if is_static(sizes) and sizes == self.graph.full_sizes:
                full_weights = weights
            outputs, losses = self._run(
                sizes, weights, x, True, states, limit, offsets
            )
            # A target may bring its whole loss by `add_loss`.
            loss = 0.0
            if getattr(self, "loss", None) is not None or not losses:
                loss = self._compute_loss(
                    x, y, outputs, sample_weight, training=True
                )
                loss = loss / self.replica_share
            task_total = task_total + loss
            if largest is not None and self.distillation:
                distilled = self._distill(largest, outputs, sample_weight)
                distillation_total = distillation_total + distilled
                share = self.distillation
                loss = (1.0 - share) * loss + share * distilled
            for extra in losses:
                loss = loss + ops.sum(ops.cast(extra, "float32"))
            if largest is None:
                largest = outputs
            else:
                loss = loss * self._weight(ratio)
            total = total + loss
            if self.weight_norm:
                norm = self._norm(weights, sizes) * self.weight_norm
                self.trackers["weight_norm_loss"].update_state(norm)
                total = total + norm
        self.trackers["task_loss"].update_state(task_total / len(drawn))
        if "distillation_loss" in self.trackers:
            self.trackers["distillation_loss"].update_state(
                distillation_total / max(len(drawn) - 1, 1)
            )
        if self.reconstruction:
            if full_weights is None:
                full_weights = self.field.generate(self.graph.full_sizes)
            distance = self._reconstruct(full_weights) * self.reconstruction
            self.trackers["reconstruction_loss"].update_state(distance)
            total = total + distance
        self._loss_tracker.update_state(total, sample_weight=_batch_size(x))
        return total, largest

    def _weight(self, ratio):
        """Weight of the loss of a smaller size."""
        if isinstance(ratio, tuple):
            ratio = ratio[0]
        ratio = ops.convert_to_tensor(ratio, "float32")
        ratio = ops.mean(ratio) / self.sampler.max_ratio
        return ops.power(ratio, self.ratio_power)

    def _distill(self, teacher, student, sample_weight):
        teacher = keras.tree.map_structure(ops.stop_gradient, teacher)
        teachers, students = (
            keras.tree.flatten(teacher),
            keras.tree.flatten(student),
        )
        weights = keras.tree.flatten(sample_weight)
        if len(weights) != len(teachers):
            weights = [weights[0] if len(weights) == 1 else None] * len(
                teachers
            )
        losses = per_output(
            getattr(self, "loss", None), teacher, self.output_names
        )
        if self.distillation_loss == "auto":
            losses = distillation_losses(losses)
        else:
            custom = _reduced(
                keras.losses.get(self.distillation_loss), self.replica_share
            )
            losses = [None if loss is None else custom for loss in losses]
        shares = per_output(
            self._compile_config.config["loss_weights"],
            teacher,
            self.output_names,
        )
        total = ops.zeros(())
        for loss, share, a, b, weight in zip(
            losses, shares, teachers, students, weights
        ):
            if loss is not None:
                share = 1.0 if share is None else share
                total = total + share * loss(a, b, weight)
        return total / self.replica_share

    def _reconstruct(self, weights):
        """Mean over tensors of mean(|w*| / max|w*| * (w - w*)^2)."""
        distances = []
        for weight, reference in zip(weights, self.references):
            size = ops.abs(reference)
            importance = size / (ops.max(size) + 1e-12)
            distances.append(
                ops.mean(importance * ops.square(weight - reference))
            )
        return sum(distances) / len(distances)

    def _norm(self, weights, sizes):
        """Sum of the L2 norms of the weights that exist at these sizes."""
        return sum(
            # The gradient of a norm at zero (an unused bias) is undefined.
            ops.sqrt(ops.sum(ops.square(weight)) + 1e-12)
            * ops.cast(layout.exists_at(sizes), "float32")
            for layout, weight in zip(self.field.layouts, weights, strict=True)
        )

    def step_logs(self, x, y, y_pred, sample_weight):
        """Metrics of the largest size, and every term of the loss."""
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        for name, tracker in self.trackers.items():
            logs[name] = tracker.result()
        return logs

    def get_metrics_result(self):
        # The terms of the training loss have no value in `evaluate`.
        logs = super().get_metrics_result()
        return {k: v for k, v in logs.items() if k not in self.trackers}

    def morph(
        self,
        ratio=None,
        *,
        depth=None,
        sizes=None,
        params=None,
        macs=None,
        extrapolate=False,
        samples=1,
        noise=1.0,
        divisor=1,
        calibration_data=None,
        name=None,
        into=None,
    ):
        """Builds the plain network of a size, with weights from the field.

        One of `ratio`, `sizes` or a budget says which size; `depth` goes with
        each of them. Sizes below the smallest fixed one of the sampler, those
        between its fixed ones where it draws no random ones and, where the
        field reads leading channels and all layers are dense or plain or
        depthwise convolutions, those of very different ratios are the next
        larger fixed one without the channels that it misses least, its other
        weights making up for them.

        Args:
            ratio: Kept width of every morphable channel group, in (0, 1]; or
                a dict from layer names, group names or patterns such as
                `"stage3*"` to the ratios of these groups, all others staying
                at full size (`hyper.graph.summary()` shows which layers
                share a group); or a list of such, for a list of networks.
            depth: How many of the blocks that can be left out are kept, for
                hypermodels with `min_depth`. Default: all.
            sizes: Channels instead: a dict from names or patterns to numbers
                of channels, or a sequence with one number per group.
            params, macs: The largest uniform ratio with at most so many
                parameters and multiply-accumulates per example (of kernels):
                an integer, or a float in (0, 1] for a share of the target's.
            extrapolate: Whether a ratio above 1 is allowed: a network larger
                than the target, which training has never seen. Not every
                field can.
            samples: Number of noisy samples of the weights to average, the
                first one without noise (50 to 100 in the paper), for fields
                that were trained with noise. The full size has none, and so
                what follows from it.
            noise: Width of that noise, in channels. The statistics are those
                of single samples: for averages over a channel and more, give
                `calibration_data`.
            divisor: Round the channels of each group to multiples of this
                number (8, say, for hardware).
            calibration_data: Inputs, or a dataset of `x` or `(x, y)` batches,
                on which the batch-norm statistics are measured anew. Default:
                the statistics that training kept for this size.
            name: Name of the new model. Default: that of the target.
            into: A network that an earlier call built for the same size: it
                is given the weights of now, and no new one is built.

        Returns:
            A Sequential or functional `keras.Model` that knows nothing of
            this library, not compiled; a list of them for a list of ratios.
            Layers of the target that are not from Keras need their package
            when the network is loaded: `models.Sampling` needs this one.

        Raises:
            TypeError, ValueError: If an argument cannot be used; the message
                says why.

        Example:

        ```python
        half = hyper.morph(0.5)
        small, large = hyper.morph([0.25, 1.0])
        mixed = hyper.morph(ratio={"stage3*": 0.5, "stem": 0.25})
        tiny = hyper.morph(macs=0.1)
        ```
        """
        options = {
            "samples": samples,
            "noise": noise,
            "calibration_data": calibration_data,
            "name": name,
            "into": into,
        }
        if isinstance(ratio, np.ndarray):
            ratio = ratio.tolist()
        if isinstance(ratio, list | tuple):
            if sizes is not None or params is not None or macs is not None:
                raise ValueError(
                    "A list of ratios cannot be combined with `sizes`, "
                    "`params` or `macs`. Ask for one of them at a time."
                )
            if into is not None:
                raise ValueError(
                    "Argument `into` takes one network, and a list of ratios "
                    "asks for several. Ask for one at a time."
                )
            chosen = [
                choose_sizes(
                    self, value, None, None, None, divisor, extrapolate, depth
                )
                for value in ratio
            ]
            return [morph(self, each, **options) for each in chosen]
        chosen = choose_sizes(
            self, ratio, sizes, params, macs, divisor, extrapolate, depth
        )
        return morph(self, chosen, **options)

    def export(self, filepath, format=None, **options):
        """Exports the full size; see `keras_neumeta.export`.

        A smaller one: `keras_neumeta.export(hyper.morph(ratio), filepath)`.
        """
        # That module knows this one.
        from keras_neumeta.export import export

        export(self.morph(1.0), filepath, format, **options)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        save_generator(store, "generator", self.seed_generator)

    def load_own_variables(self, store):
        rest = load_generator(store, "generator", self.seed_generator)
        super().load_own_variables(rest)
        self.networks.set_states([ops.convert_to_numpy(v) for v in self.states])

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        distillation_loss = self.distillation_loss
        if not isinstance(distillation_loss, str):
            distillation_loss = serialize(distillation_loss)
        return {
            "version": FILE_VERSION,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": serialize(self.dtype_policy),
            "model": serialize(self.graph.model),
            "field": serialize(self.field),
            "sampler": serialize(self.sampler),
            "layers": self.morphed_layers,
            "distillation": self.distillation,
            "ratio_power": self.ratio_power,
            "reconstruction": self.reconstruction,
            "weight_norm": self.weight_norm,
            "noise": self.noise,
            "min_depth": self.min_depth,
            "distillation_loss": distillation_loss,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        arguments = inspect.signature(ManifoldHyperModel.__init__).parameters
        unsaved = {"self", "kwargs", "smooth", "imitate"}
        config = checked_config(config, {*arguments, "dtype"} - unsaved)
        for key in ("model", "field", "sampler", "dtype", "distillation_loss"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(
                    config[key], custom_objects=custom_objects
                )
        # The weights that follow are smooth, and the field's own.
        return cls(**config, smooth=False, imitate=False)


def _by_name(argument, value, names, kind, **more):
    if isinstance(value, str) and value in names:
        return names[value](**more)
    if isinstance(value, kind):
        return value
    raise ValueError(
        f"Argument `{argument}` must be a `{kind.__name__}` or one of "
        f"{sorted(names)}. Received: {argument}={value!r}"
    )


def _width(group, sizes):
    """Channels that noise is drawn for: more for sizes above the full."""
    if not is_static(sizes):
        return group.num_channels
    return max(group.num_channels, sizes[group.index])


def _batch_size(x):
    first = next(v for v in keras.tree.flatten(x) if v is not None)
    return ops.shape(first)[0]


def _reduced(loss, share):
    """A loss function or object as `(teacher, student, weight) -> scalar`.

    As loss objects do, in parts that several replicas add up.
    """
    if isinstance(loss, keras.losses.Loss):
        return loss
    return lambda teacher, student, weight: (
        ops.mean(loss(teacher, student)) * share
    )
