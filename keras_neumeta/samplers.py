"""Samplers: the sizes of each training step.

Sizes follow an additive recurrence (a Kronecker sequence): the state moves on
by an irrational step, modulo 1. It covers the range more evenly than
independent draws, is the same on all backends and devices, compiles to one
addition, and is saved with the model. (`Independent` needs more numbers than
such a sequence keeps apart, and draws them with `keras.random`.)
"""

import itertools
import random

import keras
import numpy as np
from keras import ops

from keras_neumeta.graph.sizes import check_ratio
from keras_neumeta.serialization import (
    load_generator,
    register_serializable,
    save_generator,
)

# Knots in the range of the random ratios.
NUM_KNOTS = 13


class SizeSampler(keras.layers.Layer):
    """Draws the ratios (kept widths) of one training step.

    Subclasses implement `sample` and set `min_ratio`, `max_ratio` and
    `num_sizes`, the number of ratios that `sample` returns. One that draws
    random ratios from a part of that range alone, or by other means than
    `next`, has its own `random_range`, one that draws a few alone its own
    `knots`; one that draws a ratio for each group sets `per_group`.

    Args:
        num_draws: Numbers of the sequence that one step uses.
        seed: Start of the sequence.
    """

    def __init__(self, num_draws, seed=None, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.seed = seed
        self.num_draws = num_draws
        # Without a seed, the one that `keras.utils.set_random_seed` sets.
        start_seed = random.randrange(2**31) if seed is None else seed
        start = np.random.default_rng(start_seed).random(max(num_draws, 1))
        self._start = start.astype("float32")
        self.state = None
        self.num_groups = None
        # Square roots of primes: irrational and independent.
        primes = (5, 2, 3, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
        if num_draws > len(primes):
            raise ValueError(
                f"A sampler draws at most {len(primes)} ratios a step. "
                f"Received: {num_draws}"
            )
        steps = np.sqrt(np.array(primes[: max(num_draws, 1)], "float64"))
        steps[0] = (steps[0] - 1) / 2  # the golden ratio, the most even
        self.steps = (steps % 1.0).astype("float32")
        self.built = True

    num_sizes = 1
    per_group = False

    def attach(self, graph, follow=False):
        """Tells the sampler of its target.

        Args:
            graph: `ChannelGraph` of the target.
            follow: Whether sizes between the fixed ones can follow from the
                next larger one.

        Raises:
            ValueError: If the sampler already belongs to another target.
        """
        if self.num_groups is not None:
            raise ValueError(
                f"Sampler '{self.name}' already draws the sizes of another "
                "hypermodel, and its sequence goes on with that: create a "
                "new one for this model."
            )
        self.num_groups = len(graph.groups)
        self._create_state()

    def _create_state(self):
        # With the hypermodel, on its devices, wherever the sampler was made.
        if self.state is None:
            self.state = self.add_weight(
                shape=self._start.shape,
                initializer="zeros",
                trainable=False,
                name="state",
            )
            self.state.assign(self._start)

    @property
    def static_ratios(self):
        """Ratios that every step uses, known beforehand."""
        return ()

    @property
    def limits(self):
        """Ratios below 1 that random ratios of a step never exceed."""
        return ()

    @property
    def random_range(self):
        """Smallest and largest random ratio; `None` where none are drawn."""
        return (self.min_ratio, self.max_ratio) if self.num_draws else None

    @property
    def knots(self):
        """Rising ratios, the last one 1, that stand for all that is drawn."""
        fixed = {self.min_ratio, *self.static_ratios, 1.0}
        random = []
        if self.random_range is not None:
            random, gap = np.linspace(
                *self.random_range, NUM_KNOTS, retstep=True
            )
            # Few are drawn between knots that nearly coincide.
            random = [
                r for r in random if min(abs(r - f) for f in fixed) > gap / 4
            ]
        return _rising(*fixed, *random)

    @property
    def sources(self):
        """Fixed ratios from which others follow that no step has trained.

        The smallest one, for those below, and each where random ratios do not
        reach all sizes from it down to the next.
        """
        fixed = sorted(self.static_ratios, reverse=True)
        low, high = self.random_range or (1.0, 0.0)
        # Below a smallest one above random ratios, the field is read.
        last = 0.0 if fixed and fixed[-1] <= low else low
        return tuple(
            ratio
            for ratio, next_ in itertools.pairwise((*fixed, last))
            if not (low <= next_ and ratio <= high)
        )

    def next(self):
        """Moves the sequence on. Returns float32 `(num_draws,)` in [0, 1)."""
        self._create_state()
        value = self.state + ops.convert_to_tensor(self.steps)
        value = value - ops.floor(value)
        self.state.assign(value)
        return value

    def sample(self):
        """The ratios of one step.

        Returns:
            List of ratios, the largest first: Python floats where known
            beforehand, else float tensors, scalar or `(num_groups,)`, or
            pairs of such a tensor and the one of `limits` that it does not
            exceed: computed within a network of that ratio.
        """
        raise NotImplementedError

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


def _rising(*ratios):
    return tuple(sorted({float(f"{ratio:.6g}") for ratio in ratios}))


def _check_range(min_ratio, max_ratio):
    min_ratio, max_ratio = check_ratio(min_ratio), check_ratio(max_ratio)
    if min_ratio > max_ratio:
        raise ValueError(
            "Argument `min_ratio` must not be above `max_ratio`. Received: "
            f"min_ratio={min_ratio}, max_ratio={max_ratio}"
        )
    return min_ratio, max_ratio


def _check_count(argument, value, least):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"Argument `{argument}` must be an integer of at least {least}. "
            f"Received: {argument}={value!r}"
        )
    if value < least:
        raise ValueError(
            f"Argument `{argument}` must be at least {least}. "
            f"Received: {argument}={value}"
        )
    return value


@register_serializable
class Uniform(SizeSampler):
    """One ratio a step, uniform in a range (the published way).

    Args:
        min_ratio, max_ratio: The range of the ratio, in (0, 1].
        seed: Start of the sequence.
    """

    def __init__(self, min_ratio=0.25, max_ratio=1.0, seed=None, **kwargs):
        self.min_ratio, self.max_ratio = _check_range(min_ratio, max_ratio)
        super().__init__(1, seed, **kwargs)

    @property
    def limits(self):
        return (self.max_ratio,) if self.max_ratio < 1.0 else ()

    def sample(self):
        span = self.max_ratio - self.min_ratio
        ratio = self.min_ratio + span * self.next()[0]
        return [(ratio, self.max_ratio) if self.limits else ratio]

    def get_config(self):
        return {
            **super().get_config(),
            "min_ratio": self.min_ratio,
            "max_ratio": self.max_ratio,
        }


@register_serializable
class Discrete(SizeSampler):
    """One ratio a step, out of a list.

    Args:
        ratios: Ratios in (0, 1].
        probabilities: Their probabilities. Default: all equal.
        seed: Start of the sequence.
    """

    def __init__(self, ratios, probabilities=None, seed=None, **kwargs):
        self.ratios = [check_ratio(ratio) for ratio in ratios]
        if not self.ratios:
            raise ValueError("Argument `ratios` must not be empty.")
        if probabilities is None:
            probabilities = [1 / len(self.ratios)] * len(self.ratios)
        probabilities = [float(p) for p in probabilities]
        if (
            len(probabilities) != len(self.ratios)
            or min(probabilities) < 0
            or not np.isclose(sum(probabilities), 1.0)
        ):
            raise ValueError(
                "Argument `probabilities` must have one nonnegative number "
                "per ratio, with sum 1. Received: "
                f"probabilities={probabilities} for {len(self.ratios)} ratios"
            )
        self.probabilities = probabilities
        self.min_ratio, self.max_ratio = min(self.ratios), max(self.ratios)
        super().__init__(1, seed, **kwargs)

    @property
    def knots(self):
        return _rising(*self.ratios, 1.0)

    def sample(self):
        bounds = ops.convert_to_tensor(
            np.cumsum(self.probabilities)[:-1], "float32"
        )
        ratios = ops.convert_to_tensor(self.ratios, "float32")
        above = ops.cast(self.next()[0] >= bounds, "int32")
        return [ops.take(ratios, ops.sum(above))]

    def get_config(self):
        return {
            **super().get_config(),
            "ratios": self.ratios,
            "probabilities": self.probabilities,
        }


@register_serializable
class Switches(SizeSampler):
    """The same few ratios in every step, each at its physical size.

    Source: Slimmable Neural Networks (Yu et al., ICLR 2019).

    Args:
        ratios: Ratios in (0, 1].
    """

    def __init__(self, ratios=(1.0, 0.75, 0.5, 0.25), seed=None, **kwargs):
        self.ratios = sorted({check_ratio(r) for r in ratios}, reverse=True)
        if not self.ratios:
            raise ValueError("Argument `ratios` must not be empty.")
        self.min_ratio, self.max_ratio = self.ratios[-1], self.ratios[0]
        self.num_sizes = len(self.ratios)
        super().__init__(0, seed, **kwargs)

    @property
    def static_ratios(self):
        return tuple(self.ratios)

    def sample(self):
        return list(self.ratios)

    def get_config(self):
        return {**super().get_config(), "ratios": self.ratios}


@register_serializable
class Sandwich(SizeSampler):
    """Fixed ratios, the largest and the smallest among them, and random ones.

    The fixed ones are evenly spaced (1, 0.75, 0.5 and 0.25) and computed
    physically at their size: what learns in every step ends well above its
    neighbours. The range of the random ones is divided into bands, each from
    some ratio down to the same share of it (0.75 to 0.43 and 0.43 to 0.25), so
    that small sizes learn as often as large ones. They are computed within
    the largest network of their band: at 0.56 and 0.19 of the cost.

    Source: Universally Slimmable Networks (Yu and Huang, ICCV 2019), the
    sandwich rule; theirs is `num_fixed=2, num_random=2, bands=1`.

    Args:
        min_ratio, max_ratio: The range of the ratio, in (0, 1].
        num_fixed: How many fixed ratios a step, at least 2.
        num_random: How many random ratios a step, in each band.
        bands: How many bands.
        seed: Start of the sequence.
        max_random: The largest random ratio. Default: the largest fixed ratio
            but one, as random sizes above cost the full one accuracy. Those
            then follow from the largest fixed one, see
            `ManifoldHyperModel.morph`. Where that is not possible for all
            layers or needs moments of more than half of the parameters, with
            a field that interpolates, with two fixed ratios, with `noise`, and
            in subclasses with ratios of their own: `max_ratio`.
    """

    def __init__(
        self,
        min_ratio=0.25,
        max_ratio=1.0,
        num_fixed=4,
        num_random=1,
        bands=2,
        seed=None,
        max_random=None,
        **kwargs,
    ):
        self.min_ratio, self.max_ratio = _check_range(min_ratio, max_ratio)
        self.num_fixed = _check_count("num_fixed", num_fixed, 2)
        self.num_random = _check_count("num_random", num_random, 0)
        self.bands = _check_count("bands", bands, 1)
        self.max_random = max_random
        if max_random is not None:
            self.max_random = check_ratio(max_random)
        self._follow = True
        if not self.min_ratio <= self._random_top <= self.max_ratio:
            raise ValueError(
                "Argument `max_random` must be in the range of the ratio. "
                f"Received: max_random={max_random}, min_ratio={min_ratio}, "
                f"max_ratio={max_ratio}"
            )
        self.num_sizes = num_fixed + num_random * bands
        super().__init__(num_random * bands, seed, **kwargs)

    @property
    def static_ratios(self):
        return self._divided(np.linspace, self.max_ratio, self.num_fixed)

    @property
    def random_range(self):
        return (self.min_ratio, self._random_top) if self.num_random else None

    @property
    def _random_top(self):
        if self.max_random is not None:
            return self.max_random
        second = self.static_ratios[1]
        # Ratios of a subclass's own may be anywhere.
        kind = type(self)
        own = (kind.sample, kind.sample_random) != (
            Sandwich.sample,
            Sandwich.sample_random,
        )
        if own or not self._follow or second == self.min_ratio:
            return self.max_ratio
        return second

    def attach(self, graph, follow=False):
        super().attach(graph, follow)
        self._follow = follow

    @property
    def limits(self):
        tops = self._edges()[:-1] if self.num_random else ()
        return tuple(top for top in tops if top < 1.0)

    def _edges(self):
        """Ratios where the bands begin and end, from the largest."""
        return self._divided(np.geomspace, self._random_top, self.bands + 1)

    def _divided(self, space, top, number):
        """So many ratios from the top down to the smallest."""
        inner = space(top, self.min_ratio, number)[1:-1]
        inner = (
            min(max(float(f"{ratio:.6g}"), self.min_ratio), top)
            for ratio in inner
        )
        return (top, *inner, self.min_ratio)

    def sample(self):
        largest, *others = self.static_ratios
        return [largest, *self.sample_random(), *others]

    def sample_random(self):
        """The random ratios of one step."""
        draws = self.next() if self.num_random else ()
        edges = self._edges()
        ratios = []
        for number in range(self.num_random * self.bands):
            band = number // self.num_random
            top, bottom = edges[band], edges[band + 1]
            ratio = bottom + (top - bottom) * draws[number]
            ratios.append(ratio if top == 1.0 else (ratio, top))
        return ratios

    def get_config(self):
        return {
            **super().get_config(),
            "min_ratio": self.min_ratio,
            "max_ratio": self.max_ratio,
            "num_fixed": self.num_fixed,
            "num_random": self.num_random,
            "bands": self.bands,
            "max_random": self.max_random,
        }


@register_serializable
class Independent(Sandwich):
    """Like `Sandwich`, but random sizes draw every channel group by itself.

    For `morph` with a ratio per group: each group's width is uniform in the
    range, whatever the others are. Drawn with a `keras.random.SeedGenerator`,
    which is saved with the model and the same on all devices.

    Args:
        min_ratio, max_ratio: The range of the ratios, in (0, 1].
        num_fixed: How many fixed ratios a step, the same for all groups.
        num_random: How many random sizes a step.
        seed: Seed of the generator.
    """

    per_group = True

    def __init__(
        self,
        min_ratio=0.25,
        max_ratio=1.0,
        num_fixed=2,
        num_random=1,
        seed=None,
        **kwargs,
    ):
        super().__init__(
            min_ratio,
            max_ratio,
            num_fixed,
            num_random,
            bands=1,
            max_random=None,
            seed=seed,
            **kwargs,
        )
        self.seed_generator = None

    def attach(self, graph, follow=False):
        super().attach(graph, follow)
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        save_generator(store, "generator", self.seed_generator)

    def load_own_variables(self, store):
        rest = load_generator(store, "generator", self.seed_generator)
        super().load_own_variables(rest)

    def sample_random(self):
        ratios = [
            keras.random.uniform(
                (self.num_groups,),
                self.min_ratio,
                self.max_ratio,
                seed=self.seed_generator,
            )
            for _ in range(self.num_random)
        ]
        if self.limits:
            return [(ratio, self.max_ratio) for ratio in ratios]
        return ratios

    def get_config(self):
        config = super().get_config()
        del config["bands"], config["max_random"]  # All of the range.
        return config
