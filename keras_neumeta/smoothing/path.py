"""Shortest Hamiltonian path through a set of channels.

Ordering the channels of a layer along a short path makes its weights vary
smoothly along the channel axis, which is what lets a small network describe
them. The problem is the traveling salesman problem with one extra city at
distance zero from all others: removing that city opens the tour to a path.

A handful of cities is solved exactly. More are solved by iterated local
search: 3-opt descent over lists of near cities, repeated after small random
double bridges. Penalties on cities that are near to all others let the lists
be short. Work is bounded by counts, never by a clock, so that a seed always
gives the same order.
"""

import operator
import random

import numpy as np

EXACT_CITIES = 12  # Up to here dynamic programming is the faster way.
NEAR_CITIES = 8  # Candidates for the first new edge of a move.
NEAR_CITIES_DEEP = 5  # Candidates for the second one.
PENALTY_STEPS = 30
KICKS_PER_CITY = 20
MAX_KICKS = 6_000
KICK_SPAN = 150  # Longest stretch of the tour a kick rearranges.
PROGRESS_STEPS = 40


def shortest_path(distances, *, seed=0, effort=1.0, progress=None):
    """Orders cities along a short open path.

    Args:
        distances: Symmetric matrix of nonnegative distances, of shape
            `(n, n)`. Its diagonal is ignored.
        seed: Integer. Seed of the random part of the search. The same
            distances and seed always give the same order.
        effort: Length of the random part of the search, relative to the
            usual one; 0 for the nearest neighbour path without any search.
        progress: Optional callable. It is called with the fraction of the
            search that is done, a few dozen times, the last time with 1.0.

    Returns:
        An int64 array of shape `(n,)`, a permutation of the cities. It is
        `0, 1, ..., n - 1` unless a strictly shorter order was found.

    Raises:
        ValueError: If `distances` isn't square, or holds values that are
            not finite, negative or asymmetric, or if `seed` is no integer.

    Example:

    >>> points = np.array([0.0, 3.0, 1.0, 2.0])
    >>> distances = np.abs(points[:, None] - points[None, :])
    >>> shortest_path(distances)
    array([0, 2, 3, 1])
    """
    distances = _check_distances(distances)
    try:
        seed = operator.index(seed)
    except TypeError:
        raise ValueError(
            f"`seed` must be an integer. Received: seed={seed!r}"
        ) from None
    cities = len(distances)
    identity = np.arange(cities, dtype="int64")
    if cities <= 2:
        order = identity
    elif cities <= EXACT_CITIES:
        order = _exact_path(distances)
    else:
        order = _search_path(distances, seed, effort, progress)
    if progress is not None:
        progress(1.0)
    if not path_length(distances, order) < path_length(distances):
        return identity
    # Both directions are equally long: start at the lower end.
    return order if order[0] < order[-1] else order[::-1].copy()


def path_length(distances, order=None):
    """Sums the distances between neighbors of an order.

    Args:
        distances: Matrix of distances, of shape `(n, n)`.
        order: Optional permutation of the `n` cities. Defaults to
            `0, 1, ..., n - 1`.

    Returns:
        A float, the length of the open path.

    Example:

    >>> points = np.array([0.0, 1.0, 3.0])
    >>> distances = np.abs(points[:, None] - points[None, :])
    >>> path_length(distances)
    3.0
    >>> path_length(distances, [1, 0, 2])
    4.0
    """
    distances = np.asarray(distances, dtype="float64")
    if order is None:
        order = np.arange(len(distances))
    order = np.asarray(order, dtype="int64")
    return float(distances[order[:-1], order[1:]].sum())


def _check_distances(distances):
    try:
        array = np.asarray(distances, dtype="float64")
    except (TypeError, ValueError):
        raise ValueError(
            "`distances` must be a matrix of real numbers. Received: "
            f"distances={distances!r}"
        ) from None
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(
            "`distances` must be a square matrix, of shape `(n, n)`. "
            f"Received an array of shape {array.shape}."
        )
    wrong = ~np.isfinite(array) | (array < 0)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            "`distances` must be finite and nonnegative. Received "
            f"distances[{row}, {column}]={array[row, column]}"
        )
    # Leaves room for the rounding of distances computed in single precision.
    tolerance = 1e-6 * array.max(initial=0.0)
    wrong = np.abs(array - array.T) > tolerance
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            "`distances` must be symmetric. Received "
            f"distances[{row}, {column}]={array[row, column]} but "
            f"distances[{column}, {row}]={array[column, row]}"
        )
    return 0.5 * array + 0.5 * array.T


def _exact_path(distances):
    """Dynamic programming over the sets of visited cities."""
    cities = len(distances)
    bits = 1 << np.arange(cities)
    # cost[visited, last]: shortest path through `visited` that ends in `last`.
    cost = np.full((1 << cities, cities), np.inf)
    cost[bits, np.arange(cities)] = 0.0
    previous = np.zeros(cost.shape, dtype="int64")
    for visited in range(1, 1 << cities):
        if visited & (visited - 1) == 0:
            continue
        # A city outside `visited` leads to a later row, which is infinite.
        totals = cost[visited ^ bits] + distances
        previous[visited] = totals.argmin(axis=1)
        cost[visited] = totals.min(axis=1)
    visited = (1 << cities) - 1
    order = [int(cost[visited].argmin())]
    while len(order) < cities:
        last = order[-1]
        order.append(int(previous[visited, last]))
        visited ^= 1 << last
    return np.array(order)


def _search_path(distances, seed, effort, progress):
    """Iterated local search: kick, descend, keep what isn't longer."""
    if not effort:
        return _nearest_neighbor_path(distances)
    rng = random.Random(seed)
    tour = _Tour(distances)
    cities = list(tour.order)
    rng.shuffle(cities)
    tour.descend(cities)
    order, position = tour.order[:], tour.position[:]
    kicks = round(effort * min(KICKS_PER_CITY * len(distances), MAX_KICKS))
    for kick in range(kicks):
        if progress is not None and kick * PROGRESS_STEPS % kicks < (
            PROGRESS_STEPS
        ):
            progress(kick / kicks)
        loss, ends = tour.kick(rng)
        if tour.descend(ends) - loss >= -tour.tolerance:
            order[:], position[:] = tour.order, tour.position
        else:
            tour.order[:], tour.position[:] = order, position
    start = order.index(len(distances))
    return np.array(order[start + 1 :] + order[:start])


def _nearest_neighbor_path(distances):
    """Walks from city 0 to the nearest city that is left."""
    left = distances.copy()
    order = [0]
    while len(order) < len(distances):
        left[:, order[-1]] = np.inf
        order.append(int(left[order[-1]].argmin()))
    return order


def _penalties(distances, upper):
    """Penalties of cities that many others are near to (Held and Karp).

    A small kernel is among the nearest of most others, yet a path passes it
    once. Penalties that rise with a city's edges in the shortest tree turn
    that tree into almost a tour. They add the same to every tour, but with
    them the near cities are the likely neighbors.

    Args:
        distances: Symmetric matrix of distances, the extra city's included.
        upper: Float. The length of some tour.

    Returns:
        An array of shape `(size,)`.
    """
    penalties = np.zeros(len(distances))
    best, best_penalties = -np.inf, penalties
    for _ in range(PENALTY_STEPS):
        reduced = distances + penalties[:, None] + penalties[None, :]
        degrees, length = _shortest_tree(reduced)
        bound = length - 2.0 * penalties.sum()
        if bound > best:
            best, best_penalties = bound, penalties
        excess = degrees - 2.0
        step = max(upper - bound, 0.0) / (excess @ excess)
        penalties = penalties + step * excess
    return best_penalties


def _shortest_tree(distances):
    """Degrees and length of the shortest spanning tree (Prim)."""
    size = len(distances)
    degrees = np.zeros(size)
    outside = np.ones(size, dtype=bool)
    nearest = distances[0].copy()
    parent = np.zeros(size, dtype="int64")
    city, length = 0, 0.0
    for _ in range(size - 1):
        outside[city] = False
        nearest[city] = np.inf
        closer = outside & (distances[city] < nearest)
        nearest[closer] = distances[city, closer]
        parent[closer] = city
        city = int(nearest.argmin())
        length += nearest[city]
        degrees[city] += 1
        degrees[parent[city]] += 1
    return degrees, length


class _Tour:
    """A closed tour through the cities and the extra city.

    Plain lists, not arrays: the search reads single numbers, for which
    lists are several times faster.

    Args:
        distances: Symmetric matrix of distances, of shape `(n, n)`.
    """

    def __init__(self, distances):
        cities = len(distances)
        self.size = cities + 1
        # Gains below it may be rounding and would let the descent cycle.
        self.tolerance = 1e-10 * float(distances.max())
        path = _nearest_neighbor_path(distances)
        if path_length(distances) < path_length(distances, path):
            path = list(range(cities))
        padded = np.pad(distances, (0, 1))
        penalties = _penalties(padded, path_length(distances, path))
        reduced = padded + penalties[:, None] + penalties[None, :]
        self.distances = reduced.tolist()

        np.fill_diagonal(reduced, np.inf)
        nearest = np.argsort(reduced, axis=1, kind="stable")
        nearest = nearest[:, : min(NEAR_CITIES, cities)].tolist()
        self.near = [
            [(city, row[city]) for city in candidates]
            for row, candidates in zip(self.distances, nearest, strict=True)
        ]
        self.near_deep = [row[:NEAR_CITIES_DEEP] for row in self.near]

        self.order = path + [cities]
        self.position = [0] * self.size
        for index, city in enumerate(self.order):
            self.position[city] = index

    def flip(self, a, b, c, d):
        """Replaces the edges a-b and c-d by a-c and b-d (2-opt)."""
        order, position, size = self.order, self.position, self.size
        if order[position[b] - 1] != a:
            a, b, c, d = b, a, d, c
        first, last = position[b], position[c]
        # The rest of the tour may be reversed instead, where it is shorter.
        if 2 * ((last - first) % size) + 2 > size:
            first, last = position[d], position[a]
        if first <= last:
            cities = order[first : last + 1][::-1]
            order[first : last + 1] = cities
            for index, city in enumerate(cities, first):
                position[city] = index
            return
        for _ in range(((last - first) % size + 1) // 2):
            order[first], order[last] = order[last], order[first]
            position[order[first]] = first
            position[order[last]] = last
            first = (first + 1) % size
            last = (last - 1) % size

    def best_move(self, t1):
        """Finds the best 2-opt or 3-opt move that removes an edge at `t1`.

        A move removes the edges t1-t2, t3-t4 and, if 3-opt, t5-t6; it adds
        t2-t3, then t4-t1 or t4-t5 and t6-t1. As each sum of gains on the way
        must be positive, few of the candidates need be looked at.

        Args:
            t1: Integer. A city.

        Returns:
            A tuple `(gain, flips)`, with the move as arguments of `flip`.
            `flips` is empty when no move gains.
        """
        order, position, size = self.order, self.position, self.size
        distances, near_deep = self.distances, self.near_deep
        row1, position1 = distances[t1], position[t1]
        best, flips = self.tolerance, ()
        # Both directions of travel: `order[position + ahead]` is the next
        # city, `behind` the one before. Wraps by way of negative indices.
        for ahead, behind, sign in ((1 - size, -1, 1), (-1, 1 - size, -1)):
            t2 = order[position1 + ahead]
            position2 = position[t2]
            removed = row1[t2]
            for t3, added in self.near[t2]:
                gain1 = removed - added
                if gain1 <= best:
                    break
                if t3 == t1:
                    continue
                row3, position3 = distances[t3], position[t3]
                steps3 = (position3 - position2) * sign % size

                # t4 before t3: t4-t1 closes a tour, or one more flip does.
                t4 = order[position3 + behind]
                if t4 != t2:
                    gain2 = gain1 + row3[t4]
                    if gain2 - row1[t4] > best:
                        best = gain2 - row1[t4]
                        flips = ((t1, t2, t4, t3),)
                    for t5, added in near_deep[t4]:
                        gain3 = gain2 - added
                        if gain3 <= best:
                            break
                        if t5 == t3:
                            continue
                        position5 = position[t5]
                        steps5 = (position5 - position2) * sign % size
                        t6 = order[
                            position5 + (ahead if steps5 < steps3 else behind)
                        ]
                        if t6 == t4:
                            continue
                        gain = gain3 + distances[t5][t6] - row1[t6]
                        if gain > best:
                            best = gain
                            flips = ((t1, t2, t4, t3), (t1, t4, t6, t5))

                # t4 after t3: t2..t3 became a ring that t5-t6 must open.
                t4 = order[position3 + ahead]
                gain2 = gain1 + row3[t4]
                for t5, added in near_deep[t4]:
                    gain3 = gain2 - added
                    if gain3 <= best:
                        break
                    position5 = position[t5]
                    steps5 = (position5 - position2) * sign % size
                    if steps5 > steps3:
                        continue
                    if steps5 < steps3:
                        t6 = order[position5 + ahead]
                        gain = gain3 + distances[t5][t6] - row1[t6]
                        if gain > best:
                            best = gain
                            flips = (
                                (t1, t2, t3, t4),
                                (t1, t3, t6, t5),
                                (t3, t5, t2, t4),
                            )
                    if steps5 > 0:
                        t6 = order[position5 + behind]
                        gain = gain3 + distances[t5][t6] - row1[t6]
                        if gain > best:
                            best = gain
                            flips = ((t1, t2, t6, t5), (t2, t5, t3, t4))
        return best, flips

    def descend(self, cities):
        """Applies moves at `cities` and at all they touch until none gains.

        Args:
            cities: List of the cities to start from.

        Returns:
            A float, by how much the tour became shorter.
        """
        queue = list(dict.fromkeys(cities))
        queued = set(queue)
        total = 0.0
        while queue:
            city = queue.pop()
            queued.discard(city)
            gain, flips = self.best_move(city)
            if not flips:
                continue
            total += gain
            for flip in flips:
                self.flip(*flip)
                for touched in flip:
                    if touched not in queued:
                        queued.add(touched)
                        queue.append(touched)
        return total

    def kick(self, rng):
        """Reorders three neighboring stretches: a double bridge.

        It changes four edges in a way that 3-opt cannot take back at once.

        Args:
            rng: A `random.Random`.

        Returns:
            A tuple `(loss, ends)`: by how much the tour became longer, and
            the list of the cities whose edges changed.
        """
        order, distances = self.order, self.distances
        span = rng.randint(3, min(KICK_SPAN, self.size - 2))
        first = rng.randrange(self.size - span)
        last = first + span
        cuts = sorted(rng.sample(range(first + 1, last), 2))
        before, after = order[first], order[last + 1 - self.size]
        one = order[first + 1 : cuts[0] + 1]
        two = order[cuts[0] + 1 : cuts[1] + 1]
        three = order[cuts[1] + 1 : last + 1]
        old = [before, one[0], one[-1], two[0], two[-1]]
        old += [three[0], three[-1], after]
        new = [before, three[0], three[-1], two[0], two[-1]]
        new += [one[0], one[-1], after]
        stretch = three + two + one
        order[first + 1 : last + 1] = stretch
        for index, city in enumerate(stretch, first + 1):
            self.position[city] = index
        loss = sum(
            distances[new[edge]][new[edge + 1]]
            - distances[old[edge]][old[edge + 1]]
            for edge in (0, 2, 4, 6)
        )
        return loss, new
