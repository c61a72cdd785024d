import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from keras_neumeta.smoothing import path
from keras_neumeta.smoothing.path import path_length, shortest_path


def distances_of(cities, dimensions, seed):
    # `RandomState`, as its numbers are the same in every NumPy version.
    points = np.random.RandomState(seed).uniform(size=(cities, dimensions))
    return cdist(points, points, "cityblock")


def brute_force(distances):
    return min(
        path_length(distances, order)
        for order in itertools.permutations(range(len(distances)))
    )


def assert_permutation(order, cities):
    assert order.dtype == np.int64
    assert order.shape == (cities,)
    assert sorted(order.tolist()) == list(range(cities))


@pytest.mark.parametrize("cities", range(2, 8))
@pytest.mark.parametrize("dimensions", [1, 2, 30])
def test_few_cities_are_solved_exactly(cities, dimensions):
    distances = distances_of(cities, dimensions, seed=cities)
    length = path_length(distances, shortest_path(distances))
    assert length == pytest.approx(brute_force(distances), rel=1e-12)


@pytest.mark.parametrize("dimensions", [1, 2, 30])
@pytest.mark.parametrize("cities", [4, 7, 10, 11, 12])
def test_search_agrees_with_dynamic_programming(
    cities, dimensions, monkeypatch
):
    distances = distances_of(cities, dimensions, seed=cities)
    exact = path_length(distances, shortest_path(distances))
    monkeypatch.setattr(path, "EXACT_CITIES", 3)
    searched = path_length(distances, shortest_path(distances))
    assert searched == pytest.approx(exact, rel=1e-12)


# Lengths found by LKH, the best of 50 runs, 20 for the last. In the last, the
# rows near zero are the nearest of all others.
@pytest.mark.parametrize(
    "dimensions, seed, scaled, best_known",
    [
        (32, 128, False, 1001.200701),
        (2, 129, False, 10.980179),
        (1000, 130, True, 38061.083820),
    ],
)
def test_128_cities_within_one_percent(
    dimensions, seed, scaled, best_known, monkeypatch
):
    random = np.random.RandomState(seed)
    if scaled:
        points = random.uniform(-1.0, 1.0, size=(128, dimensions))
        points = points * random.uniform(size=(128, 1))
    else:
        points = random.uniform(size=(128, dimensions))
    distances = cdist(points, points, "cityblock")
    # A quarter of the search, as this must leave room to spare.
    monkeypatch.setattr(path, "KICKS_PER_CITY", 5)
    order = shortest_path(distances)
    assert_permutation(order, 128)
    length = path_length(distances, order)
    assert best_known * (1 - 1e-3) <= length <= 1.01 * best_known


def test_points_on_a_line_are_sorted():
    positions = np.random.RandomState(0).permutation(50).astype("float64")
    order = shortest_path(np.abs(positions[:, None] - positions[None, :]))
    steps = np.diff(positions[order])
    assert abs(steps.sum()) == 49.0
    np.testing.assert_array_equal(np.abs(steps), 1.0)


# Whole numbers on a small grid: ties, duplicates and rows of zeros abound.
@settings(max_examples=25, deadline=None)
@given(
    cities=st.integers(0, 24),
    dimensions=st.integers(1, 3),
    largest=st.integers(0, 5),
    scale=st.sampled_from([1.0, 1e-30, 1e30, 0.1]),
    seed=st.integers(0, 2**31),
)
def test_permutation_never_longer_than_identity(
    cities, dimensions, largest, scale, seed
):
    points = np.random.RandomState(seed).randint(
        0, largest + 1, size=(cities, dimensions)
    )
    points = scale * points
    distances = np.abs(points[:, None] - points[None]).sum(-1)
    order = shortest_path(distances, seed=seed)
    assert_permutation(order, cities)
    identity = path_length(distances)
    if not np.array_equal(order, np.arange(cities)):
        assert path_length(distances, order) < identity


@settings(max_examples=15, deadline=None)
@given(cities=st.integers(13, 30), seed=st.integers(0, 2**31))
def test_descent_and_kick_report_how_the_length_changes(cities, seed):
    """Every move is what its gain says, without a triangle inequality too."""
    random = np.random.RandomState(seed)
    distances = random.uniform(size=(cities, cities))
    distances = distances + distances.T
    np.fill_diagonal(distances, 0.0)
    tour = path._Tour(distances)
    closed = np.pad(distances, (0, 1))

    def length():
        assert sorted(tour.order) == list(range(cities + 1))
        assert [tour.order[i] for i in tour.position] == list(range(cities + 1))
        return closed[tour.order, np.roll(tour.order, -1)].sum()

    before = length()
    gain = tour.descend(range(cities + 1))
    assert before - length() == pytest.approx(gain, abs=1e-9)
    generator = path.random.Random(seed)
    for _ in range(5):
        before = length()
        loss, ends = tour.kick(generator)
        assert length() - before == pytest.approx(loss, abs=1e-9)
        before = length()
        gain = tour.descend(ends)
        assert before - length() == pytest.approx(gain, abs=1e-9)


def test_sorted_cities_stay_as_they_are():
    positions = np.arange(60.0)
    order = shortest_path(np.abs(positions[:, None] - positions[None, :]))
    np.testing.assert_array_equal(order, np.arange(60))


@pytest.mark.parametrize("cities", [0, 1, 2, 3, 5, 13, 40])
def test_equal_distances_give_the_identity(cities):
    for value in (0.0, 1.0):
        order = shortest_path(np.full((cities, cities), value))
        assert_permutation(order, cities)
        np.testing.assert_array_equal(order, np.arange(cities))


def test_three_cities():
    positions = np.array([0.0, 2.0, 1.0])
    order = shortest_path(np.abs(positions[:, None] - positions[None, :]))
    np.testing.assert_array_equal(order, [0, 2, 1])


def test_same_seed_same_order(monkeypatch):
    # Cut short: a full search may end at the optimum whatever its seed.
    monkeypatch.setattr(path, "MAX_KICKS", 10)
    distances = distances_of(60, 500, seed=3)
    orders = [shortest_path(distances, seed=seed) for seed in range(5)]
    np.random.seed(0)
    for seed, order in enumerate(orders):
        again = shortest_path(distances.tolist(), seed=np.int64(seed))
        np.testing.assert_array_equal(order, again)
    assert len({tuple(order) for order in orders}) > 1


def test_input_is_left_alone():
    distances = distances_of(20, 5, seed=0)
    copy = distances.copy()
    shortest_path(distances)
    np.testing.assert_array_equal(distances, copy)


def test_diagonal_is_ignored():
    distances = distances_of(20, 5, seed=0)
    expected = shortest_path(distances)
    np.fill_diagonal(distances, 0.5)
    np.testing.assert_array_equal(shortest_path(distances), expected)


def test_rounding_is_no_asymmetry():
    distances = distances_of(20, 5, seed=0).astype("float32")
    distances[3, 5] = np.nextafter(distances[3, 5], np.float32(9))
    assert_permutation(shortest_path(distances), 20)


@pytest.mark.parametrize("cities", [4, 30])
def test_progress_rises_to_one(cities):
    done = []
    shortest_path(distances_of(cities, 3, seed=0), progress=done.append)
    assert done == sorted(set(done))
    assert done[-1] == 1.0
    assert 0.0 <= done[0]
    assert len(done) == (1 if cities == 4 else 41)


@pytest.mark.parametrize(
    "distances, match",
    [
        (np.zeros((2, 3)), r"`distances` must be a square.*\(2, 3\)"),
        (np.zeros(4), r"`distances` must be a square.*\(4,\)"),
        ([[0.0, 1.0], [1.0]], "`distances` must be a matrix of real"),
        ([["a"]], "`distances` must be a matrix of real"),
        ([[0.0, np.nan], [np.nan, 0.0]], r"finite.*distances\[0, 1\]=nan"),
        ([[0.0, np.inf], [np.inf, 0.0]], r"finite.*distances\[0, 1\]=inf"),
        ([[0.0, -1.0], [-1.0, 0.0]], r"nonnegative.*\[0, 1\]=-1.0"),
        ([[0.0, 1.0], [2.0, 0.0]], r"symmetric.*=1.0 but .*=2.0"),
    ],
)
def test_bad_distances_are_refused(distances, match):
    with pytest.raises(ValueError, match=match):
        shortest_path(distances)


def test_bad_seed_is_refused():
    with pytest.raises(ValueError, match="`seed` must be an integer.*0.5"):
        shortest_path(np.zeros((2, 2)), seed=0.5)
