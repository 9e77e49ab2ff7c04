"""Partitions: every example once, the shape that the name promises, the same by seed and from the disk."""

import dataclasses
import sys

import numpy as np
import pytest

from fedsim.core import streams
from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.core.streams import Streams
from fedsim.problems.datasets import Dataset
from fedsim.problems.partitions import base as module
from fedsim.problems.partitions import cached
from fedsim.problems.partitions.base import Partition, Shared, hold_out, noisy_labels
from fedsim.problems.partitions.cached import cached_partition
from fedsim.problems.partitions.dirichlet_equal import DirichletEqual, apportion
from fedsim.problems.partitions.library import IID, Dirichlet, Exponential, Linear, Pathological, Shards, Square, stolen
from fedsim.problems.partitions.natural import Natural


def labelled(n=600, m=100, classes=10, owner=None, owner_test=None):
    """A data set of nothing but balanced labels in random order."""
    generator = np.random.default_rng(7)
    y, y_test = (generator.permutation(np.arange(count) % max(classes, 1)) for count in (n, m))
    x, x_test = np.zeros((n, 1), np.float32), np.zeros((m, 1), np.float32)
    return Dataset("labelled", x, y, x_test, y_test, classes, owner, owner_test)


DATA = labelled()
EVERY = [
    IID(clients=20),
    Dirichlet(clients=20, alpha=0.5),
    Dirichlet(clients=20, alpha=0.5, self_balancing=True),
    Pathological(clients=20, classes_per_client=3),
    Shards(clients=20),
    Exponential(clients=5),
    Linear(clients=20),
    Square(clients=10),
    DirichletEqual(clients=20, alpha=0.5, replace=False),
]


def lists(partition):
    return [partition.indices(client).tolist() for client in range(partition.clients)]


def held(partition, client):
    return partition.holdout_order[partition.holdout_offset[client] : partition.holdout_offset[client + 1]]


def classes_of(partition, data=DATA):
    return [len(np.unique(data.y[partition.indices(client)])) for client in range(partition.clients)]


def refused(option, make, data=DATA):
    """The one line with which making or splitting is refused, on that option."""
    with pytest.raises(InputError) as caught:
        make().split(data, 0)
    assert "\n" not in str(caught.value)
    assert caught.value.option == option, str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("plan", EVERY, ids=lambda plan: type(plan).__name__)
def test_every_example_once_the_same_by_seed_and_other_by_another(plan):
    made = plan.split(DATA, 3)
    # 600 examples are divisible by every number of clients and shards here.
    assert sorted(made.order.tolist()) == list(range(600))
    assert made.order.dtype == made.offset.dtype == np.int64
    assert made.sizes.min() >= 1
    assert lists(plan.split(DATA, 3)) == lists(made)
    assert lists(plan.split(DATA, 4)) != lists(made)


@pytest.mark.parametrize("plan", EVERY, ids=lambda plan: type(plan).__name__)
def test_holdout_takes_its_share_of_each_client_and_leaves_one(plan):
    whole, kept = plan.split(DATA, 3), dataclasses.replace(plan, holdout=0.3).split(DATA, 3)
    assert whole.holdout_order is None
    expected = np.minimum(np.floor(0.3 * whole.sizes + 0.5), whole.sizes - 1)
    assert np.diff(kept.holdout_offset).tolist() == expected.tolist()
    for client in range(whole.clients):
        parts = [*kept.indices(client).tolist(), *held(kept, client).tolist()]
        assert sorted(parts) == sorted(whole.indices(client).tolist())


# As the library deals


OPTIONS = {
    IID: ({}, {"examples": 46}),
    Linear: ({},),
    Square: ({},),
    Exponential: ({},),
    Shards: ({"shards_per_client": 1}, {"shards_per_client": 5}),
    Pathological: tuple(
        {"classes_per_client": classes, "assignment": assignment}
        for classes in (1, 3)
        for assignment in ("random", "deterministic", "first-deterministic")
    ),
    Dirichlet: tuple(
        {"alpha": alpha, "min_size": least, "self_balancing": balancing}
        for alpha in (1e-9, 0.1, 5.0)
        for least in (0, 3)
        for balancing in (False, True)
    ),
}
NAMES = {
    IID: "IidPartitioner",
    Shards: "ShardPartitioner",
    "shards_per_client": "num_shards_per_partition",
    "classes_per_client": "num_classes_per_partition",
    "assignment": "class_assignment_mode",
    "min_size": "min_partition_size",
}
"""What the library calls partitions and options that it does not call as we do."""


def by_library(plan, given, data, seed):
    """The training indices of each client as flwr-datasets deals the same examples; None: it cannot."""
    import datasets
    from flwr_datasets import partitioner

    order = plan.chosen(data, seed)
    settings = {NAMES.get(name, name): value for name, value in given.items() if name != "examples"}
    if isinstance(plan, Dirichlet | Shards | Pathological):
        settings |= {"partition_by": "label", "shuffle": False, "seed": Streams(seed).derive("partition/library")}
    dealer = getattr(partitioner, NAMES.get(type(plan), f"{type(plan).__name__}Partitioner"))(plan.clients, **settings)
    dealer.dataset = datasets.Dataset.from_dict({"index": order, "label": data.y[order]})
    try:
        dealt = [list(dealer.load_partition(client)["index"]) for client in range(plan.clients)]
    except (ValueError, ZeroDivisionError):
        return None
    if isinstance(plan, Dirichlet) and plan.min_size == 0:
        return [own for own in dealt if own]
    return dealt if all(dealt) else None


@pytest.mark.filterwarnings("ignore")  # it warns of what was asked for, and its imports of each other
@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("examples", "classes", "clients"), [(50, 3, 1), (97, 3, 20), (200, 10, 7), (60, 10, 20)])
def test_everybody_is_dealt_what_flwr_datasets_deals(kind, examples, classes, clients):
    y = 3 * np.random.default_rng(examples).integers(0, classes, examples)  # some classes have no example
    data = dataclasses.replace(labelled(examples, 6, 3 * classes), y=y)
    for seed, given in enumerate(OPTIONS[kind]):
        plan = kind(clients=clients, **given)
        expected = by_library(plan, given, data, seed)
        if expected is None:
            with pytest.raises(InputError):
                plan.split(data, seed)
        else:
            assert lists(plan.split(data, seed)) == expected


@pytest.mark.filterwarnings("ignore")
def test_a_dirichlet_partition_is_drawn_eleven_times_at_most():
    given = {"alpha": 1.0, "min_size": 18}
    plan = Dirichlet(clients=20, **given)
    # With this seed the eleventh draw is the first one that is even enough.
    assert lists(plan.split(DATA, 2)) == by_library(plan, given, DATA, 2)


def test_a_class_is_shared_by_as_many_clients_as_it_has_examples():
    # Ten classes of 60 examples each.
    assert Pathological(clients=60, classes_per_client=10).split(DATA, 0).sizes.tolist() == [10] * 60
    refused("partition.classes_per_client", lambda: Pathological(clients=61, classes_per_client=10))


# Shapes


def test_iid_sizes_differ_by_one_at_most():
    sizes = IID(clients=7).split(DATA, 0).sizes
    # 600 = 7 * 85 + 5.
    assert sorted(sizes.tolist()) == [85] * 2 + [86] * 5


def test_iid_is_shuffled():
    ordered = dataclasses.replace(DATA, y=np.sort(DATA.y))
    assert min(classes_of(IID(clients=10).split(ordered, 0), ordered)) >= 8


def test_dirichlet_alpha_sets_how_many_classes_a_client_has():
    few, many = (np.mean(classes_of(Dirichlet(clients=10, alpha=a).split(DATA, 0))) for a in (0.2, 100.0))
    assert few < 7
    assert many == 10


def test_dirichlet_keeps_the_least_size():
    # Sizes of 20 clients under alpha 1 reach below 10 without the option.
    assert Dirichlet(clients=20, alpha=1.0).split(DATA, 0).sizes.min() < 15
    assert Dirichlet(clients=20, alpha=1.0, min_size=15).split(DATA, 0).sizes.min() >= 15


@pytest.mark.parametrize(
    ("alpha", "least", "balancing"), [(0.1, 4, False), (0.01, 1, False), (0.01, 4, True), (1e-9, 1, True)]
)
def test_who_is_short_of_examples_steals_of_who_has_the_most(alpha, least, balancing):
    plan = Dirichlet(clients=30, alpha=alpha, min_size=least, self_balancing=balancing, fill="steal")
    made = plan.split(DATA, 0)
    assert (made.clients, made.sizes.min()) == (30, least)
    assert sorted(made.order.tolist()) == list(range(600))
    assert lists(plan.split(DATA, 0)) == lists(made)
    # Nobody has given more than would leave it with fewer than others had: the poorest giver is as rich as any.
    drawn = Dirichlet(clients=30, alpha=alpha, min_size=0, self_balancing=balancing).split(DATA, 0).sizes
    missing = 30 * least - int(np.minimum(drawn, least).sum())
    level = np.sort(drawn)[::-1].copy()
    for _ in range(missing):
        level[np.argmax(level)] -= 1
    assert made.sizes.max() == level.max()


def test_one_example_is_stolen_where_one_is_missing():
    """Of clients with 1, 3 and 4 examples, two each: one of the client with 4, whichever is drawn."""
    given = [np.array([0]), np.array([1, 2, 3]), np.array([4, 5, 6, 7])]
    first, second, third = stolen(given, 2, np.random.default_rng(0))
    assert (len(first), second.tolist(), len(third)) == (2, [1, 2, 3], 3)
    assert sorted([*first, *third]) == [0, 4, 5, 6, 7]


def test_whom_no_example_falls_to_is_left_out_on_request():
    made = Dirichlet(clients=30, alpha=0.01, min_size=0).split(DATA, 0)
    # With so small an alpha nearly all of a class is one client's.
    assert 5 <= made.clients < 30
    assert made.sizes.min() >= 1
    assert sorted(made.order.tolist()) == list(range(600))


def test_what_cannot_be_drawn_is_refused_with_what_to_do():
    said = refused("partition.min_size", lambda: Dirichlet(clients=30, alpha=0.01))
    assert 'set fill = "steal", or min_size = 0' in said


def test_dirichlet_balancing_evens_the_sizes():
    free = Dirichlet(clients=10, alpha=0.3).split(DATA, 0).sizes
    balanced = Dirichlet(clients=10, alpha=0.3, self_balancing=True).split(DATA, 0).sizes
    assert balanced.std() < free.std()


def test_shards_give_most_clients_two_classes_at_most():
    made = Shards(clients=50).split(DATA, 0)
    # 100 shards of 6; each class of 60 is exactly 10 of them, so no shard has two classes.
    assert made.sizes.tolist() == [12] * 50
    assert max(classes_of(made)) == 2
    # 7 * 2 shards of 42 do not end where classes do; 600 - 7 * 84 = 12 examples are left over.
    uneven = Shards(clients=7).split(DATA, 0)
    assert uneven.sizes.tolist() == [84] * 7
    assert len(np.unique(uneven.order)) == 588
    assert set(classes_of(Shards(clients=10, shards_per_client=1).split(DATA, 0))) == {1}


@pytest.mark.parametrize("count", [1, 2, 10])
def test_pathological_gives_each_client_exactly_that_many_classes(count):
    assert set(classes_of(Pathological(clients=20, classes_per_client=count).split(DATA, 0))) == {count}


def test_pathological_assignments():
    made = Pathological(clients=10, classes_per_client=2, assignment="deterministic").split(DATA, 0)
    for client in range(10):
        assert set(DATA.y[made.indices(client)]) == {client, (client + 1) % 10}
    made = Pathological(clients=10, classes_per_client=2, assignment="first-deterministic").split(DATA, 0)
    assert all(client in DATA.y[made.indices(client)] for client in range(10))
    # Two clients of one class leave eight classes unused; that is what was asked for, not a warning.
    made = Pathological(clients=2, classes_per_client=1, assignment="deterministic").split(DATA, 0)
    assert made.sizes.tolist() == [60, 60]


def test_sizes_by_client_number():
    # Units 1, 2, 3, 4 of 600 / 10; 1, 4, 9 of 600 / 14, rounded down, the rest to the last.
    assert Linear(clients=4).split(DATA, 0).sizes.tolist() == [60, 120, 180, 240]
    assert Square(clients=3).split(DATA, 0).sizes.tolist() == [42, 171, 387]
    # Shares e / (e + e^2 + e^3) = 0.0900, 0.2447, 0.6652.
    assert Exponential(clients=3).split(DATA, 0).sizes.tolist() == [54, 146, 400]


def test_natural_groups_by_owner_and_renumbers():
    owner = np.array([5, 2, 5, 0, 2, 5])
    data = labelled(6, 4, 2, owner, np.array([2, 0, 1, 2]))
    made = Natural().split(data, 0)
    # Owners 0, 2 and 5 have training examples; owner 1 of a test example has none.
    assert lists(made) == [[3], [1, 4], [0, 2, 5]]
    assert (made.order_test.tolist(), made.offset_test.tolist()) == ([1, 0, 3], [0, 1, 3, 3])
    assert lists(Natural(clients=2).split(data, 0)) == [[3], [1, 4]]
    largest = Natural(clients=2, keep="largest").split(data, 0)
    assert lists(largest) == [[1, 4], [0, 2, 5]]
    assert largest.order_test.tolist() == [0, 3]
    assert Natural().split(labelled(6, 4, 2, owner), 0).order_test is None


def test_dirichlet_equal_has_one_size_and_the_same_proportions_for_the_test():
    data = labelled(2000, 1000)
    made = DirichletEqual(clients=10, alpha=0.5).split(data, 0)
    assert made.sizes.tolist() == [200] * 10
    assert np.diff(made.offset_test).tolist() == [100] * 10
    # Drawn with replacement: 2,000 draws of 60 % or so distinct examples, where 2,000 would be all.
    assert len(np.unique(made.order)) < 1600
    for client in range(10):
        train = np.bincount(data.y[made.indices(client)], minlength=10)
        rows = slice(made.offset_test[client], made.offset_test[client + 1])
        test = np.bincount(data.y_test[made.order_test[rows]], minlength=10)
        # Both are the client's proportions rounded by less than one example: |train / 2 - test| < 1.5.
        assert np.abs(train / 2 - test).max() < 1.5
    other = DirichletEqual(clients=10, alpha=0.5, size=7, test_size=3).split(data, 0)
    assert (other.sizes.tolist(), np.diff(other.offset_test).tolist()) == ([7] * 10, [3] * 10)


def test_dirichlet_equal_without_replacement_deals_no_example_twice():
    made = DirichletEqual(clients=20, alpha=0.1, replace=False).split(DATA, 0)
    assert len(np.unique(made.order)) == 600
    assert len(np.unique(made.order_test)) == 100
    few = np.mean(classes_of(DirichletEqual(clients=20, alpha=0.1, replace=False, size=10).split(DATA, 0)))
    assert few < 4


@pytest.mark.parametrize("replace", [True, False])
def test_dirichlet_equal_with_alpha_zero_is_one_class_a_client(replace):
    made = DirichletEqual(clients=20, alpha=0.0, replace=replace).split(DATA, 0)
    for client in range(20):
        assert set(DATA.y[made.indices(client)]) == {client % 10}


def test_dirichlet_equal_skips_a_class_that_the_test_set_lacks():
    data = dataclasses.replace(DATA, y_test=np.minimum(DATA.y_test, 8))
    made = DirichletEqual(clients=20, alpha=0.3).split(data, 0)
    assert np.diff(made.offset_test).tolist() == [5] * 20
    assert DirichletEqual(clients=20, alpha=0.3).split(labelled(m=10), 0).order_test is None


def test_apportion_by_hand():
    # 0.5, 0.3, 0.2 of 7 are 3.5, 2.1, 1.4: floors 3, 2, 1 and the one left goes to the largest remainder.
    assert apportion(np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]]), 7).tolist() == [[4, 2, 1], [0, 0, 7]]


def test_hold_out_never_puts_one_example_on_both_sides():
    made = DirichletEqual(clients=30, alpha=0.3, size=40, holdout=0.4).split(labelled(60, 0, 3), 0)
    for client in range(30):
        assert not set(made.indices(client)) & set(held(made, client))
    assert made.sizes.min() >= 1
    # A client with one example many times cannot be divided; the other cuts 3 | 1 1 or 1 1 | 3.
    repeated = hold_out(Partition.from_lists([[2, 2, 2], [1, 3, 1]]), 0.5, 0)
    assert repeated.indices(0).tolist() == [2, 2, 2]
    assert set(repeated.indices(1)) ^ set(held(repeated, 1)) == {1, 3}


# Noise


def test_noise_replaces_exactly_its_share_by_other_classes():
    y = np.arange(9000) % 3
    noisy = noisy_labels(y, 3, 0.25, 1)
    changed = noisy != y
    assert changed.sum() == 2250
    # Each of the 6 ordered pairs of classes is alike likely: 375 expected, standard deviation 18.
    pairs = np.unique(np.stack([y[changed], noisy[changed]]), axis=1, return_counts=True)[1]
    assert len(pairs) == 6
    assert np.abs(pairs - 375).max() < 90
    assert np.array_equal(noisy, noisy_labels(y, 3, 0.25, 1))
    assert not np.array_equal(noisy, noisy_labels(y, 3, 0.25, 2))
    assert np.array_equal(y, np.arange(9000) % 3)
    assert np.array_equal(noisy_labels(y, 3, 0.0, 1), y)
    with pytest.raises(InputError, match=r"partition\.noise"):
        noisy_labels(y, 0, 0.1, 1)


# Refusals


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("clients", lambda: IID(clients=0)),
        ("clients", lambda: IID()),
        ("holdout", lambda: IID(clients=2, holdout=1.0)),
        ("noise", lambda: IID(clients=2, noise=1.1)),
        ("alpha", lambda: Dirichlet(clients=2, alpha=0.0)),
        ("alpha", lambda: Dirichlet(clients=2, alpha=float("nan"))),
        ("min_size", lambda: Dirichlet(clients=2, alpha=1.0, min_size=-1)),
        ("partition.fill", lambda: Dirichlet(clients=2, alpha=1.0, min_size=0, fill="steal")),
        ("alpha", lambda: DirichletEqual(clients=2, alpha=-0.1)),
        ("classes_per_client", lambda: Pathological(clients=2, classes_per_client=0)),
        ("partition.clients", lambda: IID(clients=601)),
        ("partition.clients", lambda: Shards(clients=601)),
        ("partition.clients", lambda: Exponential(clients=9)),
        ("partition.clients", lambda: Exponential(clients=600)),
        ("partition.clients", lambda: Square(clients=100)),
        ("partition.clients", lambda: Linear(clients=300)),
        ("partition.clients", lambda: DirichletEqual(clients=601, alpha=1.0)),
        ("partition.min_size", lambda: Dirichlet(clients=100, alpha=1.0, min_size=7)),
        ("partition.min_size", lambda: Dirichlet(clients=100, alpha=0.01)),
        ("partition.min_size", lambda: Dirichlet(clients=300, alpha=1e-9, self_balancing=True)),
        ("partition.shards_per_client", lambda: Shards(clients=100, shards_per_client=7)),
        ("partition.classes_per_client", lambda: Pathological(clients=2, classes_per_client=11)),
        ("partition.classes_per_client", lambda: Pathological(clients=100, classes_per_client=10)),
        ("partition.size", lambda: DirichletEqual(clients=10, alpha=1.0, size=61, replace=False)),
        ("partition.size", lambda: DirichletEqual(clients=3, alpha=0.0, size=61, replace=False)),
        ("partition.test_size", lambda: DirichletEqual(clients=2, alpha=1.0, test_size=51, replace=False)),
        ("partition.kind", lambda: Natural()),
    ],
)
def test_the_impossible_is_one_line_on_its_option(option, make):
    refused(option, make)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dirichlet(clients=2, alpha=1.0),
        lambda: Shards(clients=2),
        lambda: Pathological(clients=2, classes_per_client=1),
        lambda: DirichletEqual(clients=2, alpha=1.0),
    ],
)
def test_targets_that_are_no_classes_cannot_be_dealt_by_class(make):
    data = labelled(classes=0)
    assert "labelled has no classes" in refused("partition.kind", make, data)
    assert IID(clients=2).split(data, 0).clients == 2


def test_natural_cannot_keep_more_owners_than_there_are():
    data = labelled(6, 2, 2, np.array([0, 0, 1, 1, 2, 2]))
    assert "has 3 owners" in refused("partition.clients", lambda: Natural(clients=4), data)


def test_index_lists_of_the_user_are_checked():
    made = Partition.from_lists([[3, 1], np.array([2])])
    assert (made.clients, made.sizes.tolist(), lists(made)) == (2, [2, 1], [[3, 1], [2]])
    with pytest.raises(InputError, match=r"indices lie in 1 \.\. 3, examples in 0 \.\. 2"):
        made.check(labelled(3, 2, 2))
    for wrong, part in (
        ([[1], []], "client 1 has no training example"),
        ([[0.5]], "whole numbers"),
        ([[[0]]], "whole numbers"),
        ([], "offset must rise"),
    ):
        with pytest.raises(InputError, match=part):
            Partition.from_lists(wrong)
    with pytest.raises(InputError, match="holdout rows"):
        Partition(made.order, made.offset, None, None, np.array([1]), np.array([0, 2, 1]))


# Cache


@options
class Counting(Shared):
    """Deals everything to one client, and counts how often it is asked to."""

    calls: PositiveInt = 1

    def split(self, data, seed):
        CALLS.append(seed)
        return hold_out(Partition.from_lists([np.arange(len(data.y))]), self.holdout, seed)


@options
class Recounting(Counting):
    """Another kind with the same options."""


CALLS: list[int] = []


def test_a_cache_hit_equals_a_fresh_partition_and_is_not_dealt_again(tmp_path, monkeypatch):
    CALLS.clear()
    plan = Counting(holdout=0.2)
    fresh, stored = (cached_partition(plan, DATA, 3, tmp_path) for _ in range(2))
    assert len(CALLS) == 1
    for (name, order, offset), expected in zip(stored.rows(), fresh.rows(), strict=True):
        assert name == expected[0]
        assert np.array_equal(order, expected[1])
        assert np.array_equal(offset, expected[2])
    # Anything else in the key misses.
    changed = dataclasses.replace(DATA, y=DATA.y[::-1].copy())
    others = (
        (plan, DATA, 4),
        (plan, changed, 3),
        (plan, labelled(owner=np.zeros(600, np.int64)), 3),
        (Counting(holdout=0.3), DATA, 3),
        (Recounting(holdout=0.2), DATA, 3),
    )
    for dealt, (other, data, seed) in enumerate(others, 2):
        cached_partition(other, data, seed, tmp_path)
        assert len(CALLS) == dealt
    # So does another source of what deals, of what it builds on, and of what it draws from.
    (tmp_path / "other.py").write_text("# not what it was\n")
    for dealt, source in enumerate((module, cached, streams, sys.modules[Counting.__module__]), len(CALLS) + 1):
        with monkeypatch.context() as patched:
            patched.setattr(source, "__file__", str(tmp_path / "other.py"))
            cached_partition(plan, DATA, 3, tmp_path)
        assert len(CALLS) == dealt


def only_file(folder):
    (path,) = (folder / "partitions").iterdir()
    return path


def test_a_damaged_or_foreign_cache_file_is_made_again(tmp_path):
    CALLS.clear()
    plan, data = Counting(), labelled(6, 2, 2)
    cached_partition(plan, data, 0, tmp_path)
    path = only_file(tmp_path)
    sound = path.read_bytes()
    beyond = {"order": np.array([6]), "offset": np.array([0, 1])}
    for calls, damage in enumerate((b"", b"text", sound[:-30], sound[:80] + b"\x7f" + sound[81:], beyond, {}), 2):
        if isinstance(damage, bytes):
            path.write_bytes(damage)
        else:
            np.savez(path, **damage)
        assert cached_partition(plan, data, 0, tmp_path).order.tolist() == [0, 1, 2, 3, 4, 5]
        assert len(CALLS) == calls
        assert only_file(tmp_path) == path
    cached_partition(plan, data, 0, tmp_path)
    assert len(CALLS) == calls


def test_a_partition_whose_source_cannot_be_read_is_made_each_time(tmp_path, monkeypatch):
    CALLS.clear()
    monkeypatch.delattr(sys.modules[Counting.__module__], "__file__")
    for calls in (1, 2):
        assert cached_partition(Counting(), labelled(6, 2, 2), 0, tmp_path).clients == 1
        assert len(CALLS) == calls
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    CALLS.clear()
    plan, data = Counting(), labelled(6, 2, 2)
    (tmp_path / "file").write_text("not a folder")
    assert cached_partition(plan, data, 0, tmp_path / "file").clients == 1

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "savez", full)
    assert cached_partition(plan, data, 0, tmp_path).clients == 1
    assert list((tmp_path / "partitions").iterdir()) == []


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    plan, data = Counting(), labelled(6, 2, 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FEDSIM_CACHE", raising=False)
    cached_partition(plan, data, 0)
    assert only_file(tmp_path / "xdg" / "fedsim").suffix == ".npz"
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "own"))
    cached_partition(plan, data, 0)
    assert only_file(tmp_path / "own").suffix == ".npz"
    # Grouping by owner, and dealing at once, is faster than reading a file, so it leaves none.
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "none"))
    cached_partition(Dirichlet(clients=2, alpha=1.0), DATA, 0)
    cached_partition(Natural(), labelled(6, 2, 2, np.array([0, 0, 1, 1, 2, 2])), 0)
    assert not (tmp_path / "none").exists()
