import dataclasses
import itertools
import json

import numpy as np
import pytest

from nvae_jax.data import pipeline, splits
from nvae_jax.data.spec import DataError, DataSpec

COUNT = 23  # A prime, so that no batch size divides it.


@pytest.fixture
def spec(idx_dir):
    return DataSpec("mnist", dir=str(idx_dir), padding=2, binarize=True, horizontal_flip=True)


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def train(spec, count, *, batch_size=8, seed=0, start=0, **shard):
    iterator = pipeline.train_iterator(spec, batch_size=batch_size, seed=seed, **shard)
    iterator.set_state({"step": start, "num_examples": COUNT})
    return take(iterator, count)


def ids(batches):
    return [batch["id"].tolist() for batch in batches]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one["id"], other["id"])
        np.testing.assert_array_equal(one["image"], other["image"])


def test_a_batch_has_the_shape_and_type_that_the_model_takes(spec):
    (batch,) = train(spec, 1)
    assert batch["image"].shape == (8, 32, 32, 1) and batch["image"].dtype == np.float32
    assert batch["id"].shape == (8,) and batch["id"].dtype == np.int64
    assert set(np.unique(batch["image"])) == {0, 1}


def test_images_belong_to_their_ids(idx_dir):
    spec = DataSpec("mnist", dir=str(idx_dir), padding=2)
    images = splits.open_images(spec, "train")
    for batch in train(spec, 3):
        cut = batch["image"][:, 2:30, 2:30] * 255
        np.testing.assert_allclose(cut, images[batch["id"]], atol=1e-4)


def test_an_epoch_has_no_example_twice_and_a_new_order(spec):
    batches = ids(train(spec, 6))  # 23 // 8 = 2 steps an epoch: three epochs.
    epochs = [sum(batches[i : i + 2], []) for i in (0, 2, 4)]
    for epoch in epochs:
        assert len(set(epoch)) == 16 and set(epoch) <= set(range(COUNT))
    assert epochs[0] != epochs[1] != epochs[2]


def test_with_batches_of_one_every_epoch_has_every_example(spec):
    seen = sum(ids(train(spec, 2 * COUNT, batch_size=1)), [])
    assert sorted(seen[:COUNT]) == sorted(seen[COUNT:]) == list(range(COUNT))


def test_the_order_depends_on_the_seed(spec):
    orders = [ids(train(spec, 4, seed=seed)) for seed in (0, 1, 2)]
    assert orders[0] != orders[1] != orders[2]
    # Nor is the order of a seed that of another one, an epoch later.
    assert orders[0][2:] != orders[1][:2]


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_shards_of_all_hosts_make_up_the_batch_of_one_host(spec, hosts):
    whole = train(spec, 5)
    parts = [train(spec, 5, shard_index=i, shard_count=hosts) for i in range(hosts)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([part[step]["image"] for part in parts])
        assert sum((part[step]["id"].tolist() for part in parts), []) == batch["id"].tolist()
        np.testing.assert_array_equal(joined, batch["image"])


@pytest.mark.parametrize("start", [1, 2, 5])
def test_a_resumed_run_repeats_order_and_augmentation(spec, start):
    assert_same(train(spec, 8)[start:], train(spec, 8 - start, start=start))


def test_the_state_is_json_and_can_be_restored_on_another_number_of_hosts(spec):
    whole = train(spec, 6)
    iterator = pipeline.train_iterator(spec, batch_size=8, seed=0)
    take(iterator, 3)
    state = json.loads(json.dumps(iterator.get_state()))
    parts = []
    for host in range(2):
        resumed = pipeline.train_iterator(
            spec, batch_size=8, seed=0, shard_index=host, shard_count=2
        )
        resumed.set_state(state)
        parts.append(take(resumed, 3))
    for step in range(3):
        joined = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(joined, whole[3 + step]["image"])


def test_an_iterator_can_be_set_back(spec):
    iterator = pipeline.train_iterator(spec, batch_size=8, seed=0)
    start = iterator.get_state()
    first = take(iterator, 3)
    iterator.set_state(start)
    assert_same(first, take(iterator, 3))


def test_the_state_of_another_number_of_images_is_refused(spec):
    iterator = pipeline.train_iterator(spec, batch_size=8, seed=0)
    with pytest.raises(DataError, match="has 23 training images, but this run began with 24"):
        iterator.set_state({"step": 1, "num_examples": 24})


@pytest.mark.parametrize("change", [{"threads": 3}, {"workers": 2}], ids=str)
def test_batches_do_not_depend_on_threads_or_processes(spec, change):
    parallel = dataclasses.replace(spec, **change)
    assert_same(train(spec, 5), train(parallel, 5))
    assert_same(train(spec, 5)[2:], train(parallel, 3, start=2))


def test_every_epoch_has_new_binarisation_and_flips(spec):
    readings = {}
    for batch in train(spec, 2 * COUNT, batch_size=1):
        readings.setdefault(int(batch["id"][0]), []).append(batch["image"])
    assert len(readings) == COUNT
    for first, second in readings.values():
        assert not np.array_equal(first, second)


def test_the_time_spent_waiting_for_data_is_measured(spec):
    iterator = pipeline.train_iterator(spec, batch_size=8, seed=0)
    assert iterator.wait_seconds == 0
    take(iterator, 2)
    assert iterator.wait_seconds > 0


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"batch_size": 6, "shard_count": 4}, "6 cannot be divided among 4"),
        ({"batch_size": 0}, "0 cannot be divided"),
        ({"batch_size": 24}, "24: data set 'mnist' has 23 images"),
        ({"batch_size": 4, "shard_index": 2, "shard_count": 2}, "host 2 of 2"),
    ],
    ids=["indivisible", "zero", "too large", "no such host"],
)
def test_impossible_batch_sizes_are_refused(spec, sizes, message):
    with pytest.raises(DataError, match=message):
        pipeline.train_iterator(spec, seed=0, **sizes)


@pytest.mark.parametrize("batch_size, hosts", [(1, 1), (3, 1), (23, 1), (64, 1), (8, 2), (64, 4)])
def test_evaluation_has_every_example_once(spec, batch_size, hosts):
    parts = [
        list(
            pipeline.eval_batches(
                spec,
                split="train",
                batch_size=batch_size,
                seed=0,
                shard_index=host,
                shard_count=hosts,
            )
        )
        for host in range(hosts)
    ]
    assert {len(part) for part in parts} == {-(-COUNT // batch_size)}
    seen = []
    for batches in zip(*parts, strict=True):
        for batch in batches:
            assert batch["image"].shape == (batch_size // hosts, 32, 32, 1)
            assert batch["mask"].dtype == bool and batch["id"].dtype == np.int64
            assert not batch["image"][~batch["mask"]].any()
            assert (batch["id"][~batch["mask"]] == -1).all()
            seen += batch["id"][batch["mask"]].tolist()
    assert seen == list(range(COUNT))


def evaluated(spec, **changes):
    settings = {"split": "train", "batch_size": 8, "seed": 0} | changes
    batches = list(pipeline.eval_batches(spec, **settings))
    return np.concatenate([batch["image"][batch["mask"]] for batch in batches])


def test_evaluation_is_the_same_for_any_batch_and_number_of_hosts(spec):
    whole = evaluated(spec)
    np.testing.assert_array_equal(whole, evaluated(spec, batch_size=5))
    halves = [
        list(
            pipeline.eval_batches(
                spec, split="train", batch_size=8, seed=0, shard_index=i, shard_count=2
            )
        )
        for i in range(2)
    ]
    joined = [part["image"] for pair in zip(*halves, strict=True) for part in pair]
    np.testing.assert_array_equal(np.concatenate(joined)[:COUNT], whole)
    assert not np.array_equal(whole, evaluated(spec, seed=1))


@pytest.mark.parametrize("limit, expected", [(1, 1), (9, 9), (COUNT, COUNT), (1000, COUNT)])
def test_evaluation_can_be_limited(spec, limit, expected):
    assert len(evaluated(spec, max_examples=limit)) == expected


def test_evaluation_of_nothing_is_refused(spec):
    with pytest.raises(DataError, match="max_examples must be at least 1"):
        pipeline.eval_batches(spec, split="test", batch_size=4, seed=0, max_examples=0)


def test_training_images_are_binarised_differently_in_evaluation(idx_dir):
    spec = DataSpec("mnist", dir=str(idx_dir), padding=2, binarize=True)
    (batch,) = train(spec, 1)
    assert not np.array_equal(evaluated(spec)[batch["id"]], batch["image"])


def test_preview_is_the_start_of_evaluation(spec):
    np.testing.assert_array_equal(pipeline.preview(spec, "train", 5), evaluated(spec)[:5])
    assert pipeline.preview(spec, "test", 100).shape == (7, 32, 32, 1)


def test_the_number_of_examples_is_counted_from_the_data(spec):
    assert pipeline.num_examples(spec, "train") == 23
    assert pipeline.num_examples(spec, "test") == 7


def test_size_mismatch_is_refused_before_training(idx_dir):
    spec = DataSpec("mnist", dir=str(idx_dir))
    with pytest.raises(DataError, match="28x28 .*padding=0"):
        pipeline.train_iterator(spec, batch_size=4, seed=0)


def test_an_unknown_split_to_evaluate_is_an_error(spec):
    assert pipeline.resolve_split(spec, "test") == "test"
    with pytest.raises(DataError, match="no split 'validation', only train, test"):
        pipeline.resolve_split(spec, "validation")
