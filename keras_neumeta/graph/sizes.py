"""Sizes: channels per group, from a ratio, names or a budget; blocks."""

import fnmatch
import math

import numpy as np
from keras import ops


def check_ratio(ratio, limit=1.0):
    """Returns `ratio` as a float, or raises."""
    bounds = "(0, 1]" if limit == 1.0 else "(0, 1] or above"
    if isinstance(ratio, bool) or not isinstance(
        ratio, int | float | np.integer | np.floating
    ):
        raise TypeError(
            "Argument `ratio` (the kept width) must be a number in "
            f"{bounds}. Received: ratio={ratio!r} of type "
            f"{type(ratio).__name__}"
        )
    ratio = float(ratio)
    if not 0.0 < ratio <= limit or ratio == np.inf:
        raise ValueError(
            f"Argument `ratio` (the kept width) must be in {bounds}: 1.0 is "
            "the full size, 0.25 a quarter of every width. Received: "
            f"ratio={ratio}"
        )
    return ratio


def matching(names, pattern):
    """The names that are the pattern itself, or else that it matches."""
    names = list(names)
    if pattern in names:
        return [pattern]
    return fnmatch.filter(names, pattern)


def check_divisor(divisor):
    if isinstance(divisor, bool) or not isinstance(divisor, int | np.integer):
        raise TypeError(
            "Argument `divisor` must be an integer of at least 1. "
            f"Received: divisor={divisor!r}"
        )
    if divisor < 1:
        raise ValueError(
            "Argument `divisor` must be at least 1. "
            f"Received: divisor={divisor}"
        )
    return int(divisor)


def sizes_from_ratio(graph, ratio, divisor=1, limit=1.0):
    """See `ChannelGraph.sizes`."""
    divisor = check_divisor(divisor)
    if isinstance(ratio, dict):
        chosen = _match(graph, ratio, "ratio")
        ratios = [chosen.get(group.index, 1.0) for group in graph.groups]
        ratios = [check_ratio(value, limit) for value in ratios]
        for group, value in zip(graph.groups, ratios):
            if not group.morphable and value != 1.0:
                raise ValueError(_frozen_message(group, "ratio", value))
    else:
        ratios = [check_ratio(ratio, limit)] * len(graph.groups)
    channels = (
        _scaled(group, value, divisor)
        if group.morphable
        else group.num_channels
        for group, value in zip(graph.groups, ratios, strict=True)
    )
    return (*channels, *_all_blocks(graph))


def is_one_ratio(graph, sizes):
    """Whether sizes are those of one ratio for all groups."""
    number = len(graph.groups)
    # Ratios that round to the same channels end where those of a group do.
    return any(
        sizes_from_ratio(graph, ratio)[:number] == tuple(sizes[:number])
        for group, channels in zip(graph.groups, sizes)
        for ratio in (np.array([-0.5, -0.499, 0.0, 0.499, 0.5]) + channels)
        / group.num_channels
        if group.morphable and 0.0 < ratio <= 1.0
    )


def sizes_at(graph, ratio, limit=None):
    """Sizes at a ratio that is only known when a step runs, all blocks kept.

    Args:
        graph: `ChannelGraph`.
        ratio: Kept width, a tensor: a scalar or one per group.
        limit: Sizes that these do not exceed. Default: the full ones.

    Returns:
        The sizes, an int32 tensor.
    """
    full, least = list(graph.full_sizes), list(graph.full_sizes)
    for group in graph.morphable_groups:
        least[group.index] = 1
    most = full if limit is None else limit
    place = graph.depth_place
    channels = ops.convert_to_tensor(full[:place], "float32")
    sizes = ops.clip(
        ops.round(ratio * channels),
        ops.convert_to_tensor(least[:place], "float32"),
        ops.convert_to_tensor(most[:place], "float32"),
    )
    sizes = ops.cast(sizes, "int32")
    if graph.blocks:
        depth = ops.convert_to_tensor(full[place:], "int32")
        sizes = ops.concatenate([sizes, depth])
    return sizes


def with_depth(graph, sizes, depth):
    """Sizes with another number of kept blocks, all of them tensors."""
    channels = sizes[: graph.depth_place]
    return ops.concatenate([channels, ops.reshape(depth, (1,))])


def _all_blocks(graph):
    return graph.full_sizes[len(graph.groups) :]


def at_depth(graph, sizes, depth):
    """See `ChannelGraph.at_depth`."""
    if isinstance(depth, bool) or not isinstance(depth, int | np.integer):
        raise TypeError(
            "Argument `depth` (the number of kept blocks) must be an integer. "
            f"Received: depth={depth!r}"
        )
    if not graph.blocks:
        raise ValueError(
            f"Argument `depth`: the blocks of '{graph.model.name}' all stay. "
            "Train with `ManifoldHyperModel(model, min_depth=...)` for "
            f"networks of fewer blocks. Received: depth={depth}"
        )
    if not 0 <= depth <= len(graph.blocks):
        raise ValueError(
            "Argument `depth` (the number of kept blocks) must be in [0, "
            f"{len(graph.blocks)}]. Received: depth={depth}"
        )
    return (*sizes[: len(graph.groups)], int(depth))


def _scaled(group, ratio, divisor):
    full = group.num_channels
    if ratio == 1.0:
        return full
    divisor = _own_divisor(group, divisor)
    size = max(int(np.rint(ratio * full / divisor)), 1) * divisor
    return size if ratio > 1.0 else min(size, full)


def _own_divisor(group, divisor):
    """Groups narrower than the divisor (heads) go by single channels."""
    divisor //= math.gcd(divisor, group.repeats)
    return divisor if divisor <= group.num_channels else 1


def sizes_from_names(graph, sizes, limit=1.0):
    """Channels per group, from a dict or a sequence of all of them.

    Args:
        graph: `ChannelGraph`.
        sizes: Dict from group name, layer name or pattern to a number of
            channels, or one number per group.
        limit: Largest multiple of the full size.

    Returns:
        The sizes, with all blocks.
    """
    if isinstance(sizes, dict):
        chosen = _match(graph, sizes, "sizes")
    else:
        if not isinstance(sizes, list | tuple | np.ndarray):
            raise TypeError(
                "Argument `sizes` must be a dict from names to numbers of "
                f"channels, or one number per group. Received: {sizes!r}"
            )
        chosen = dict(enumerate(sizes))
        if graph.blocks and len(chosen) == len(graph.full_sizes):
            depth = chosen.pop(len(graph.groups))
            channels = sizes_from_names(graph, list(chosen.values()), limit)
            return at_depth(graph, channels, depth)
        if len(chosen) != len(graph.groups):
            raise ValueError(
                f"Argument `sizes` must have one number for each of the "
                f"{len(graph.groups)} groups of '{graph.model.name}' (see "
                f"`trace(model).summary()`), or be a dict. Received "
                f"{len(chosen)} numbers."
            )
    result = []
    for group in graph.groups:
        full = group.num_channels
        size = chosen.get(group.index, full)
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(
                f"Argument `sizes` must hold integers. Received: {size!r} "
                f"for group '{group.name}'"
            )
        if not 1 <= size <= full * limit:
            raise ValueError(
                f"Argument `sizes` gives group '{group.name}' {size} "
                f"channels; it must have 1 to {full * limit:g}."
            )
        if size != full and not group.morphable:
            raise ValueError(_frozen_message(group, "sizes", size))
        result.append(int(size))
    return (*result, *_all_blocks(graph))


def _frozen_message(group, argument, value):
    return (
        f"Argument `{argument}` asks for {value} of group '{group.name}', "
        f"which cannot change: {group.frozen}."
    )


def _match(graph, values, argument):
    """Dict from group index to the value that names or patterns give it.

    A group goes by its own name and by the layers that make its channels.
    Later patterns override earlier ones; two names that contradict each
    other are an error, since their channels are tied.
    """
    exact: dict = {}
    result = {}
    names = {n for g in graph.groups for n in (g.name, *g.makers)}
    for pattern, value in values.items():
        if not isinstance(pattern, str):
            raise TypeError(
                f"Argument `{argument}` must be a dict from names or "
                f"patterns. Received: {pattern!r}"
            )
        is_pattern = pattern not in names and any(
            sign in pattern for sign in "*?["
        )
        chosen = set(matching(names, pattern))
        found = [
            group
            for group in graph.groups
            if not chosen.isdisjoint((group.name, *group.makers))
        ]
        if argument == "sizes" and not is_pattern:
            own = [group for group in found if group.name == pattern]
            found = own or found
        if not found:
            known = sorted({n for g in graph.groups for n in g.makers})
            raise ValueError(
                f"Argument `{argument}`: no layer of '{graph.model.name}' "
                f"that makes channels is called '{pattern}'. Such layers: "
                f"{known}"
            )
        # A pattern may reach frozen groups too, which stay.
        if any(group.morphable for group in found):
            found = [group for group in found if group.morphable]
        for group in found:
            if not is_pattern:
                other, same = exact.setdefault(group.index, (pattern, value))
                if same != value:
                    raise ValueError(
                        f"Argument `{argument}` gives '{other}' {same} and "
                        f"'{pattern}' {value}, but their channels are tied "
                        f"(group '{group.name}', made by "
                        f"{list(group.makers)})."
                    )
            result[group.index] = value
    return result


def sizes_within(graph, params=None, macs=None, divisor=1, depth=None):
    """The sizes of the largest uniform ratio within a budget.

    Args:
        graph: `ChannelGraph`.
        params, macs: At most so many parameters and multiply-accumulates: an
            integer, or a float in (0, 1] for a share of the target's.
        divisor: As for `ChannelGraph.sizes`.
        depth: Number of kept blocks. Default: all.

    Returns:
        The sizes.

    Raises:
        ValueError: If the smallest size is above the budget.
    """
    divisor = check_divisor(divisor)
    budgets = []
    for name, value, count in (
        ("params", params, graph.count_params),
        ("macs", macs, graph.count_macs),
    ):
        if value is not None:
            budgets.append((name, _budget(name, value, count()), count))
    # Sizes change where a ratio passes a half of the divisor.
    bounds = {1.0}
    for group in graph.morphable_groups:
        full = group.num_channels
        step = _own_divisor(group, divisor)
        halves = (np.arange(1, full // step + 1) + 0.5) * step / full
        bounds.update(halves[halves < 1.0].tolist())
    ordered = np.array([0.0, *sorted(bounds)])
    ratios = [*((ordered[1:] + ordered[:-1]) / 2).tolist(), 1.0]

    def sizes_of(ratio):
        sizes = sizes_from_ratio(graph, ratio, divisor)
        return sizes if depth is None else at_depth(graph, sizes, depth)

    def excess(ratio):
        sizes = sizes_of(ratio)
        return [
            (name, limit, count(sizes))
            for name, limit, count in budgets
            if count(sizes) > limit
        ]

    above = excess(ratios[0])
    if above:
        name, limit, least = above[0]
        raise ValueError(
            f"Argument `{name}`: the smallest size of '{graph.model.name}' "
            f"has {least:,}, which is above {limit:,}. Received: "
            f"{name}={params if name == 'params' else macs}"
        )
    low, high = 0, len(ratios)
    while high - low > 1:
        middle = (low + high) // 2
        if excess(ratios[middle]):
            high = middle
        else:
            low = middle
    return sizes_of(ratios[low])


def _budget(name, value, full):
    if isinstance(value, bool) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise TypeError(
            f"Argument `{name}` must be an integer, or a float in (0, 1] for "
            f"a share of the target's {full:,}. Received: {name}={value!r}"
        )
    if isinstance(value, float | np.floating):
        if not 0.0 < value <= 1.0:
            raise ValueError(
                f"Argument `{name}` must be an integer, or a float in (0, 1] "
                f"for a share of the target's {full:,}. Received: "
                f"{name}={value}"
            )
        return int(value * full)
    if value < 1:
        raise ValueError(
            f"Argument `{name}` must be at least 1. Received: {name}={value}"
        )
    return int(value)
