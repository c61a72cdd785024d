"""Where the channels of each group lie in each variable of a network.

A *group* is a set of channels that must be kept, dropped or permuted
together. An *axis* of a variable is made of the channels of one or more
groups; each group fills `blocks` runs of its channels on it (a flattened
image repeats its channels once per position). Plain NumPy, no state.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels that are kept, dropped and permuted together.

    Attributes:
        index: Position of the group in `ChannelGraph.groups`.
        name: Name of the first layer that makes these channels (with a
            suffix where a layer's channels fall into several groups).
        num_channels: Number of channels at full size.
        makers: Names of the layers that make these channels.
        layers: Names of the layers whose weights hold these channels.
        frozen: `None` for a morphable group, else the reason why the
            number of its channels cannot change.
        repeats: How many neighbouring places of each layer one channel
            stands for (the blocks of a grouped convolution): so many
            filters come and go together.
    """

    index: int
    name: str
    num_channels: int
    makers: tuple
    layers: tuple
    frozen: str | None = None
    repeats: int = 1

    @property
    def morphable(self):
        return self.frozen is None


@dataclasses.dataclass(frozen=True)
class Piece:
    """The channels of one group on one axis: `blocks` runs of all of them."""

    group: int
    blocks: int
    num_channels: int


class Axis:
    """One axis of a variable whose positions are channels of groups.

    Args:
        groups: int array `(positions,)`, the group of each position.
        channels: int array `(positions,)`, the channel within its group.

    Attributes:
        pieces: The groups on the axis, in the order of their first channels.
        order: `None`, or the permutation of the positions that sorts the
            axis into its pieces, each `(blocks, channels)`.
        inverse: The inverse of `order`, or `None`.
    """

    def __init__(self, groups, channels):
        self.groups = np.asarray(groups)
        self.channels = np.asarray(channels)
        self.blocks = _occurrences(self.groups, self.channels)
        order = np.lexsort((self.channels, self.blocks, self.groups))
        # Pieces are in the order of their first channels, which stay at
        # every size, and so does the order.
        places = np.arange(len(self.groups))
        places = places + len(places) * (self.channels > 0)
        present = np.unique(self.groups)
        first = [places[self.groups == group].min() for group in present]
        present = present[np.argsort(first)]
        rank = np.empty(present.max() + 1, "int64")
        rank[present] = np.arange(len(present))
        order = order[np.argsort(rank[self.groups[order]], kind="stable")]
        self.pieces = tuple(
            Piece(
                int(group),
                int(self.blocks[self.groups == group].max()) + 1,
                int(self.channels[self.groups == group].max()) + 1,
            )
            for group in present
        )
        identity = np.array_equal(order, np.arange(len(order)))
        self.order = None if identity else order
        self.inverse = None if identity else np.argsort(order)

    def __len__(self):
        return len(self.groups)

    def size_at(self, sizes):
        """Number of positions at `sizes`."""
        return sum(
            piece.blocks * int(sizes[piece.group]) for piece in self.pieces
        )

    def keep(self, sizes):
        """Positions that remain at `sizes`, none above the full size."""
        sizes = np.asarray(sizes)
        return np.flatnonzero(self.channels < sizes[self.groups])

    def at(self, sizes):
        """The `Axis` that remains at `sizes`, none above the full size."""
        kept = self.keep(sizes)
        return Axis(self.groups[kept], self.channels[kept])

    def select(self, kept):
        """Positions of the kept channels, given as one boolean per channel.

        Args:
            kept: List with a boolean array `(num_channels,)` per group.
        """
        starts = np.cumsum([0, *map(len, kept[:-1])])
        mask = np.concatenate(kept)[starts[self.groups] + self.channels]
        return np.flatnonzero(mask)

    def permute(self, permutations):
        """Positions after each group's channels took a new order.

        Args:
            permutations: Dict from group index to an int array: the channel
                at place `i` is the former channel `permutation[i]`.

        Returns:
            Int array `(positions,)`: take the axis at these positions.
        """
        size = int(self.channels.max()) + 1
        key = (self.groups * (self.blocks.max() + 1) + self.blocks) * size
        position_of = np.empty(int(key.max()) + size, "int64")
        position_of[key + self.channels] = np.arange(len(self))
        source = self.channels.copy()
        for group, permutation in permutations.items():
            here = self.groups == group
            source[here] = np.asarray(permutation)[self.channels[here]]
        return position_of[key + source]


def _occurrences(groups, channels):
    """How many equal (group, channel) pairs precede each position."""
    size = int(channels.max()) + 1
    key = groups * size + channels
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    starts = np.flatnonzero(np.r_[True, sorted_key[1:] != sorted_key[:-1]])
    counts = np.diff(np.r_[starts, len(key)])
    occurrence = np.arange(len(key)) - np.repeat(starts, counts)
    result = np.empty(len(key), "int64")
    result[order] = occurrence
    return result


@dataclasses.dataclass(frozen=True)
class VariableLayout:
    """How one variable of the target depends on the channel groups.

    Attributes:
        path: The variable's path in the target.
        shape: Its shape at full size.
        axes: Dict from axis number to `Axis`; other axes never change.
        role: `"weight"` (generated by a weight field), `"statistic"`
            (moving statistics, which belong to a size) or `"state"`
            (seeds and the like, kept as they are).
        trainable: Whether the target trains it.
        uses: How often one example uses each weight, for counting
            multiply-accumulates: for each call `(positions, axes)`, the
            output positions of a convolution, say, times the channels of
            these axes (of a Dense layer over positions). Empty for biases
            and the like.
        summed: The axes that the layer sums over (input channels).
        minimum: Lower bound of a statistic (0 for a variance).
        momentum: Share of a statistic that stays in a training step.
        table: Whether the rows of a weight are looked up (an embedding), so
            that neighbours need not be alike.
        block: Place of the block that it is left out with among those of the
            graph, or `None`.
    """

    path: str
    shape: tuple
    axes: dict
    role: str
    trainable: bool
    uses: tuple = ()
    summed: tuple = ()
    minimum: float = -np.inf
    momentum: float = 0.0
    table: bool = False
    block: int | None = None

    @property
    def groups(self):
        """Indices of the groups on its axes."""
        return {p.group for axis in self.axes.values() for p in axis.pieces}

    def shape_at(self, sizes):
        """Shape of the variable at `sizes`, if it exists there."""
        shape = list(self.shape)
        for number, axis in self.axes.items():
            shape[number] = axis.size_at(sizes)
        return tuple(shape)

    def exists_at(self, sizes):
        """Whether it is in no block that is left out at `sizes`."""
        return self.block is None or self.block < sizes[-1]

    def count_params(self, sizes):
        """Number of its elements at `sizes`."""
        return math.prod(self.shape_at(sizes)) * self.exists_at(sizes)

    def count_macs(self, sizes):
        """Multiply-accumulates of one example at `sizes`."""
        if not self.exists_at(sizes):
            return 0
        uses = sum(
            positions * math.prod(axis.size_at(sizes) for axis in axes)
            for positions, axes in self.uses
        )
        return uses * math.prod(self.shape_at(sizes))

    def slices(self, sizes):
        """Axis number and kept positions, for the axes that shrink."""
        for number, axis in self.axes.items():
            kept = axis.keep(sizes)
            if len(kept) < len(axis):
                yield number, kept
