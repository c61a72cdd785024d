"""Residual blocks that can be left out.

A block adds what its layers compute to what it was given: without these
layers, the network goes on with what it was given.
"""

import collections
import dataclasses
import math

import keras

from keras_neumeta.graph.functional import nodes_of, own_calls, readers_of


@dataclasses.dataclass(frozen=True)
class Block:
    """A residual block whose shortcut is the identity.

    Attributes:
        name: Name of its addition.
        addition: The layer or operation that adds.
        shortcut: Which of its two inputs is what the block was given.
        operations: The layers and operations in between, in their order.
    """

    name: str
    addition: object
    shortcut: int
    operations: tuple

    @property
    def layers(self):
        """Names of the layers that are left out with it."""
        return tuple(
            each.name
            for each in self.operations
            if isinstance(each, keras.layers.Layer)
        )


def find_blocks(function):
    """The blocks of a network, in the order in which they are kept.

    Stages (blocks with outputs of the same shape) take turns: first come the
    first blocks of all stages, then their second ones. A network of `n`
    blocks has the first `n`.

    Args:
        function: The functional graph of a network. Nested models are not
            looked into.

    Returns:
        Tuple of `Block`.
    """
    links = _Links(function)
    found = []
    for node in links.nodes:
        block = _block_at(node, links)
        if block is not None:
            found.append((node, block))
    inner = {id(each) for _, block in found for each in block.operations}
    turns: dict = collections.Counter()
    keyed = []
    for node, block in found:
        if id(block.addition) not in inner:
            shape = node.outputs[0].shape
            keyed.append((turns[shape], len(keyed), block))
            turns[shape] += 1
    return tuple(block for *_, block in sorted(keyed, key=lambda key: key[:2]))


class _Links:
    """Who makes and who uses each tensor of a graph."""

    def __init__(self, function):
        self.once = {
            key
            for key, node in own_calls(function).items()
            if not isinstance(node.operation, keras.Model)
        }
        self.nodes = list(nodes_of(function))
        self.maker = {id(x): node for node in self.nodes for x in node.outputs}
        self.readers = readers_of(function)


def _block_at(node, links):
    """The block that ends at an addition, or `None`."""
    adds = type(node.operation) is keras.layers.Add or (
        type(node.operation).__name__ == "Add"
        and type(node.operation).__module__.startswith("keras.")
    )
    inputs = node.input_tensors
    if not adds or len(inputs) != 2 or id(node.operation) not in links.once:
        return None
    if len(keras.tree.flatten(node.arguments.args)) != 2:
        return None
    if any(x.shape != node.outputs[0].shape for x in inputs):
        return None
    for shortcut in (0, 1):
        if _loses_mask(inputs[shortcut], node.outputs[0]):
            continue
        branch = _branch(inputs[shortcut], inputs[1 - shortcut], node, links)
        if branch:
            return Block(node.operation.name, node.operation, shortcut, branch)
    return None


def _loses_mask(shortcut, result):
    """Whether layers behind would see a mask only without the block."""
    masks = [getattr(x, "_keras_mask", None) for x in (shortcut, result)]
    return masks[0] is not None and masks[1] is None


def _branch(start, end, addition, links):
    """The operations from one tensor to another, if nothing else uses them.

    They may take further inputs that do not depend on the first tensor (a
    mask, say).
    """
    before, waiting = set(), [end]
    while waiting:
        x = waiting.pop()
        node = links.maker[id(x)]
        if x is not start and id(node) not in before:
            before.add(id(node))
            waiting += node.input_tensors
    made, region = {id(start)}, []
    for node in links.nodes:
        if id(node) in before and any(
            id(x) in made for x in node.input_tensors
        ):
            region.append(node)
            made.update(id(x) for x in node.outputs)
    if id(end) not in made:
        return None
    inside = {id(addition), *map(id, region)}
    for node in region:
        if id(node.operation) not in links.once:
            return None
        for x in node.outputs:
            if not inside.issuperset(links.readers.get(id(x), ())):
                return None
    return tuple(node.operation for node in region)


def blocks_of_variables(function, blocks):
    """The block that each variable is left out with.

    The variables of its operations, and those of what only they take in: a
    layer that several blocks take in goes with the first of them.

    Args:
        function: The functional graph of a network.
        blocks: From `find_blocks`.

    Returns:
        Dict from the id of a variable to the place of its block; variables
        that always stay are missing.
    """
    links = _Links(function)
    places = {id(block.addition): n for n, block in enumerate(blocks)}
    # How many blocks must at least be kept for a tensor to be used.
    needed = {id(x): 0 for x in function.outputs}
    least: dict = {}
    for node in reversed(links.nodes):
        # Inputs of the network may be unused, as one of several outputs.
        own = min(needed.get(id(x), math.inf) for x in node.outputs)
        for variable in getattr(node.operation, "variables", ()):
            key = id(variable)
            least[key] = min(least.get(key, own), own)
        place = places.get(id(node.operation))
        for number, x in enumerate(node.input_tensors):
            here = own
            if place is not None and number != blocks[place].shortcut:
                here = max(own, place + 1)
            needed[id(x)] = min(needed.get(id(x), here), here)
    return {key: number - 1 for key, number in least.items() if number}
