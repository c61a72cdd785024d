"""Sizes that no step has trained: the next larger one, with fewer channels.

The channels that go are those that the others replace best, and what a layer
made of them is handed to its weights for those that stay: an optimal brain
surgeon (Hassibi and Stork, NIPS 1992) for whole channels. All that it has to
know of the data was measured while training. Plain NumPy, no state.
"""

import operator

import numpy as np

from keras_neumeta.graph.sizes import is_one_ratio
from keras_neumeta.input_moments import count_moments

# Added to the mean products of channels, as a share of their mean square: some
# channels are silent, or one follows from the others.
RIDGE = 1e-4
# Moments at full size that are worth their room, as a share of the parameters.
MOST_MOMENTS = 0.5


def can_follow(graph):
    """Whether sizes can follow from any larger one, in all layers."""
    most = MOST_MOMENTS * graph.count_params()
    return graph.is_linear and count_moments(graph) <= most


def source_of(hyper, sizes):
    """The trained network from which another size is reached.

    Args:
        hyper: `ManifoldHyperModel`.
        sizes: Channels per group, and perhaps a number of blocks.

    Returns:
        Its `InputMoments`, or `None` where there are none or the field knows
        the size; and its sizes, else `sizes`.
    """
    graph, sampler = hyper.graph, hyper.sampler
    number = len(graph.groups)
    channels, depth = tuple(sizes[:number]), tuple(sizes[number:])
    known = [each for each in hyper.moments if each.measured]
    fixed = {graph.sizes(ratio)[:number] for ratio in sampler.static_ratios}
    if not known or channels in fixed:
        return None, (*channels, *depth)
    known.sort(key=lambda each: sum(each.sizes))
    larger = (x for x in known if all(map(operator.ge, x.sizes, channels)))
    source = next(larger, None)
    if source and _is_known(graph, sampler, channels, source.sizes):
        return None, (*channels, *depth)
    least = tuple(map(max, channels, known[0].sizes))
    if hyper.noise and least != channels:
        # Noise teaches the field what is below.
        return None, (*channels, *depth)
    if source and not _is_known(graph, sampler, least, source.sizes):
        return source, (*source.sizes, *depth)
    # Trained, or some groups are larger than all that was measured.
    return (None if least == channels else known[0]), (*least, *depth)


def _is_known(graph, sampler, channels, larger):
    """Whether the field knows a size better than the next larger one does."""
    if sampler.random_range is None:
        return False
    low, high = map(graph.sizes, sampler.random_range)
    if not all(map(operator.le, low, channels)) or not all(
        map(operator.le, channels, high)
    ):
        return False
    drawn = sampler.per_group or is_one_ratio(graph, channels)
    if drawn or not graph.is_linear:
        return True
    # How unlike the ratios are, and how far from those of the larger one.
    groups = [group.index for group in graph.morphable_groups]
    full = np.array([graph.full_sizes[index] for index in groups])
    kept = np.array([channels[index] for index in groups]) / full
    start = np.array([larger[index] for index in groups]) / full
    return np.ptp(kept) <= np.mean(start - kept)


def reduce_channels(graph, moments, start, sizes, weights, statistics):
    """Takes channels from a network whose inputs were measured.

    Args:
        graph: `ChannelGraph` of the target.
        moments: Its `InputMoments`.
        start: Its sizes. Where groups are larger than when measured, their
            channels all stay.
        sizes: The sizes to reach.
        weights, statistics: Its arrays, in the order of the layouts of each
            role.

    Returns:
        Weights and statistics at `sizes`: lists of arrays.
    """
    weights, statistics = list(weights), list(statistics)
    parts = {
        role: [
            (layout, graph.axes_at(layout, start))
            for layout in graph.layouts
            if layout.role == role
        ]
        for role in ("weight", "statistic")
    }
    sums = {}
    for each in moments.sums:
        found, axes = moments.of(each.layer), parts["weight"][each.kernel][1]
        if found is not None and each.layout.exists_at(sizes):
            norms = [n for n in graph.normalized_sums if n.layer == each.layer]
            sums[each.kernel] = _Sum(
                each, norms, found, moments.sizes, axes, start
            )
    here = [
        (index, layout, axes)
        for index, (layout, axes) in enumerate(parts["weight"])
        if layout.exists_at(sizes)
    ]
    kept = [np.ones(number, bool) for number in start[: len(graph.groups)]]
    for group, stay in enumerate(kept):
        if sizes[group] < start[group]:
            readings = _readings(group, here, weights, sums)
            stay[:] = False
            stay[kept_channels(readings, start[group], sizes[group])] = True
    for each in sums.values():
        each.compensate(kept, weights, statistics)
    for index, (layout, axes) in enumerate(parts["weight"]):
        for number, axis in axes.items():
            if index in sums and number == sums[index].each.number:
                continue  # As small as it shall be.
            before, places = weights[index], axis.select(kept)
            weights[index] = np.take(before, places, axis=number)
            if number in layout.summed:
                weights[index] *= _scale(before, number, axis, kept)
    for index, (_, axes) in enumerate(parts["statistic"]):
        for number, axis in axes.items():
            statistics[index] = np.take(
                statistics[index], axis.select(kept), axis=number
            )
    return weights, statistics


class _Sum:
    """A layer whose weights make up for channels that go.

    Attributes:
        each: Its `LinearSum`.
        products: Dict from group to the mean products of its channels, where
            these were measured; of their deviations from the mean, where a
            constant can be added behind the sums.
    """

    def __init__(self, each, norms, found, moments_sizes, axes, start):
        self.each, self.norms, self.axis = each, norms, axes[each.number]
        mean, found = found
        # Larger groups than those measured lose nothing.
        self.mean = np.zeros(len(self.axis))
        self.mean[self.axis.keep(moments_sizes)] = mean
        found = {g: p for g, p in found.items() if start[g] == moments_sizes[g]}
        constant = each.normalized or each.bias is not None
        self.products = {
            group: _definite(centred if constant else raw)
            for group, (raw, centred) in found.items()
        }
        self.deviations = {
            group: _definite(centred) for group, (_, centred) in found.items()
        }

    def compensate(self, kept, weights, statistics):
        """Hands on what the channels did; keeps the moments of the sums."""
        places = self.axis.select(kept)
        if len(places) == len(self.axis):
            return
        before = weights[self.each.kernel].astype("float64")
        before = before.reshape(-1, *before.shape[-2:])
        after = before[:, places]
        for group, products in self.products.items():
            stay = kept[group]
            if stay.all():
                continue
            share = replacement(products, stay)
            # Rows of channels, one for each place that repeats them.
            rows = _places(self.axis, group)
            new = np.searchsorted(places, rows[:, stay])
            after[:, new] = np.einsum(
                "tbco,cd->tbdo", before[:, rows], share, optimize=True
            )
        seen = self.each.taps.astype("float64")[:, None] * self.mean
        lost = np.einsum("ti,tio->o", seen, before)
        lost -= np.einsum("ti,tio->o", seen[:, places], after)
        if self.each.bias is not None:
            weights[self.each.bias] = weights[self.each.bias] + lost
        for norm in self.norms:
            if self.each.bias is None:
                statistics[norm.mean] = statistics[norm.mean] - lost
            statistics[norm.variance] = self._variance_left(
                statistics[norm.variance], kept, places, before, after
            )
        shape = list(weights[self.each.kernel].shape)
        shape[self.each.number] = len(places)
        weights[self.each.kernel] = after.reshape(shape).astype("float32")

    def _variance_left(self, variance, kept, places, before, after):
        """The share of the variance that the channels that stay explain."""
        old, new = np.zeros(before.shape[-1]), np.zeros(before.shape[-1])
        for group, products in self.deviations.items():
            stay, rows = kept[group], _places(self.axis, group)
            some = np.searchsorted(places, rows[:, stay])
            old += _variance(before[:, rows], products)
            new += _variance(after[:, some], products[np.ix_(stay, stay)])
        rest = 0.0
        if {piece.group for piece in self.axis.pieces} - self.deviations.keys():
            rest = np.maximum(variance - old, 0.0)
        return variance * (new + rest + 1e-12) / (old + rest + 1e-12)


def _variance(rows, products):
    return np.einsum("tbco,cd,tbdo->o", rows, products, rows, optimize=True)


def _definite(products):
    """Mean products, up to a ridge; rounding may have made them indefinite."""
    scale = np.trace(products) / len(products)
    ridge = (RIDGE * scale + 1e-12) * np.eye(len(products))
    try:
        np.linalg.cholesky(products + ridge)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(products)
        products = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return products + ridge


def _scale(value, number, axis, kept):
    """Factors for channels that stay, to add up to as much as all did."""
    others = [n for n in range(value.ndim) if n != number]
    sizes = np.abs(np.moveaxis(value, number, 0)).reshape(len(axis), -1)
    scale = np.ones(len(axis), "float32")
    for piece in axis.pieces:
        sums = sizes[_places(axis, piece.group)].sum(axis=(0, 2))
        rest = sums[kept[piece.group]].sum()
        if rest > 0.0:
            scale[axis.groups == piece.group] = sums.sum() / rest
    return np.expand_dims(scale[axis.select(kept)], others)


def _places(axis, group):
    """Where the channels of a group are on an axis, `(blocks, channels)`."""
    mine = np.flatnonzero(axis.groups == group)
    order = np.lexsort((axis.channels[mine], axis.blocks[mine]))
    return mine[order].reshape(-1, axis.channels[mine].max() + 1)


def _readings(group, parts, weights, sums):
    """What layers make of the channels of a group, for `kept_channels`."""
    readings = []
    for index, layout, axes in parts:
        for number, axis in axes.items():
            if number not in layout.summed or group not in axis.groups:
                continue
            rows = np.moveaxis(weights[index], number, 0)[_places(axis, group)]
            rows = np.moveaxis(rows, 1, 0)  # channels first, then blocks
            rows = rows.reshape(len(rows), -1).astype("float64")
            products = np.eye(len(rows))
            if index in sums and number == sums[index].each.number:
                products = sums[index].products.get(group, products)
            readings.append((products, rows @ rows.T))
    return readings


def kept_channels(readings, channels, number):
    """The channels without which sums would lose most.

    One after the other goes that which costs least, all others making up for
    it as well as they can: `|w|^2 / P` of its weights `w` and its entry `P` on
    the diagonal of the inverse of the mean products.

    Args:
        readings: One for each layer that sums over the channels, a pair of
            `(channels, channels)`: the mean products of the channels, positive
            definite, and the products of what they are multiplied by.
        channels: How many there are.
        number: How many shall stay.

    Returns:
        Sorted int array `(number,)`.
    """
    readings = [
        (products, weights / total)
        for products, weights in readings
        if (total := np.sum(products * weights)) > 0.0
    ]
    stay = np.arange(channels)
    states = [(np.linalg.inv(products), w) for products, w in readings]
    while len(stay) > number:
        # Of many channels a few in each round, out of those that cost least.
        few = min(max(len(stay) // 32, 1), len(stay) - number)
        cost = np.zeros(len(stay))
        for inverse, weights in states:
            cost += np.diag(weights) / np.diag(inverse)
        # Of equals the last: fields keep the most important ones in front.
        most = np.lexsort((-stay, cost))[: 4 * few]
        some = np.ix_(most, most)
        part = [(inverse[some], weights[some]) for inverse, weights in states]
        goes = most[_cheapest(part, len(most), few)]
        left = np.setdiff1d(np.arange(len(stay)), goes)
        states = [_without(goes, left, *state) for state in states]
        stay = stay[left]
    return stay


def _without(goes, left, inverse, weights):
    """What is left once the others have taken over from some channels.

    Args:
        goes, left: Places of the channels.
        inverse: Of the mean products.
        weights: Products of the weights.

    Returns:
        Both for the channels that are left.
    """
    own = np.ix_(goes, goes)
    taken = np.linalg.solve(inverse[own], inverse[np.ix_(goes, left)])
    cross = taken.T @ weights[np.ix_(goes, left)]
    rest = np.ix_(left, left)
    return (
        inverse[rest] - inverse[np.ix_(left, goes)] @ taken,
        weights[rest] - cross - cross.T + taken.T @ weights[own] @ taken,
    )


def _cheapest(states, channels, number):
    """Which channels go, one by one, the costs of the others following.

    Args:
        states: Pairs for each reading: the inverse of the mean products and
            the products of the weights, `(channels, channels)`.

    Returns:
        List of integers.
    """
    goes: list = []
    for _ in range(number):
        cost = np.zeros(channels)
        for inverse, weights in states:
            left = np.where(
                np.isin(np.arange(channels), goes), 1.0, inverse.diagonal()
            )
            cost += weights.diagonal() / np.maximum(left, 1e-300)
        cost[goes] = np.inf
        next_ = int(np.argmin(cost))
        goes.append(next_)
        for inverse, weights in states:
            share = inverse[:, next_] / inverse[next_, next_]
            moved = np.outer(share, weights[next_])
            square = np.outer(share, share) * weights[next_, next_]
            weights += square - moved - moved.T
            inverse -= np.outer(share, inverse[next_])
    return goes


def replacement(products, stay):
    """How the channels that stay stand for all of them.

    Args:
        products: Mean products of the channels, positive definite.
        stay: Boolean per channel.

    Returns:
        Float64 `(channels, channels that stay)`: the linear combination of
        these that comes nearest to each channel, in the mean square.
    """
    share = np.linalg.solve(products[np.ix_(stay, stay)], products[stay]).T
    share[stay] = np.eye(int(stay.sum()))
    return share
