"""Sizes that no step has trained: the next larger one, with fewer channels.

The channels that go are those that the others replace best, and what a layer
made of them is handed to its weights for those that stay: an optimal brain
surgeon (Hassibi and Stork, NIPS 1992) for whole channels. All that it has to
know of the data was measured while training. Plain NumPy, no state.
"""

import operator

import numpy as np

from keras_neumeta.graph.sizes import is_one_ratio

# Added to the mean products of channels, as a share of their mean square: some
# channels are silent, or one follows from the others.
RIDGE = 1e-4


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
    least = tuple(map(max, channels, known[0].sizes))
    if hyper.noise and least != channels:
        # Noise teaches the field what is below.
        return None, (*channels, *depth)
    if not _are_drawn(graph, sampler, least):
        for each in known:
            if all(map(operator.ge, each.sizes, channels)):
                return each, (*each.sizes, *depth)
    # Trained, or some groups are larger than all that was measured.
    return (None if least == channels else known[0]), (*least, *depth)


def _are_drawn(graph, sampler, channels):
    """Whether random sizes are drawn around these."""
    if sampler.random_range is None or not (
        sampler.per_group or is_one_ratio(graph, channels)
    ):
        return False
    low, high = map(graph.sizes, sampler.random_range)
    return all(map(operator.le, low, channels)) and all(
        map(operator.le, channels, high)
    )


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
    while len(stay) > number:
        # Of many channels a few in each round, out of those that cost least.
        few = min(max(len(stay) // 32, 1), len(stay) - number)
        inverses, shares = [], []
        cost = np.zeros(len(stay))
        for products, weights in readings:
            inverse = np.linalg.inv(products[np.ix_(stay, stay)])
            share = inverse @ products[stay]
            own = np.sum((share @ weights) * share, axis=1)
            cost += own / np.diag(inverse)
            inverses.append(inverse)
            shares.append(share)
        # Of equals the last: fields keep the most important ones in front.
        most = np.lexsort((-stay, cost))[: 4 * few]
        states = [
            (inverse[np.ix_(most, most)], share[most] @ weights @ share[most].T)
            for inverse, share, (_, weights) in zip(
                inverses, shares, readings, strict=True
            )
        ]
        stay = np.delete(stay, most[_cheapest(states, len(most), few)])
    return stay


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
