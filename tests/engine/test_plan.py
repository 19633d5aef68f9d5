"""The plan is integers, and they add up."""

from itertools import pairwise

import pytest
from attlas.engine.plan import Plan, digest, make_plan, most_at_once, spread
from hypothesis import given
from hypothesis import strategies as st

plans = st.builds(
    make_plan,
    st.integers(1, 5000),
    layer_bytes=st.integers(1, 10**7),
    image_bytes=st.integers(1, 10**9),
    identity=st.just({"graph": "x"}),
    batch=st.none() | st.integers(1, 70),
    gpu=st.booleans(),
)


@given(plans)
def test_every_image_lies_in_exactly_one_batch_of_one_unit(plan: Plan) -> None:
    """Nothing is left out and nothing done twice, in order."""
    seen = [i for k in range(plan.units) for batch in plan.batches(k) for i in batch]
    assert seen == list(range(plan.images))


@given(plans)
def test_a_unit_is_a_whole_number_of_batches(plan: Plan) -> None:
    """So that no chunk belongs to two units."""
    assert plan.unit % plan.batch == 0
    assert all(len(b) == plan.batch for k in range(plan.units - 1) for b in plan.batches(k))


@given(plans, st.integers(1, 5))
def test_what_is_inferred_at_once_is_a_whole_number_of_batches(plan: Plan, times: int) -> None:
    """In units that are a whole number of them; where it is one batch, the plan is as in earlier versions."""
    more = make_plan(
        plan.images, layer_bytes=1, image_bytes=10**6, identity={}, batch=plan.batch, at_once=times * plan.batch
    )
    assert more.unit % more.at_once == 0
    assert [i for k in range(more.units) for part in more.inferred(k) for i in part] == list(range(more.images))
    assert ("at_once" in more.to_dict()) == (more.at_once > plan.batch)
    assert Plan.from_dict(more.to_dict()) == more
    assert plan.batch <= most_at_once(plan.images, plan.batch, 1)


@given(plans)
def test_the_plan_survives_json(plan: Plan) -> None:
    """What a store keeps is what was planned."""
    assert Plan.from_dict(plan.to_dict()) == plan


@given(plans)
def test_the_sample_is_ascending_and_each_place_belongs_to_one_unit(plan: Plan) -> None:
    """Every picture of the sample is written once."""
    places = [p for k in range(plan.units) for p, _ in plan.sampled(plan.unit_range(k))]
    assert sorted(places) == list(range(len(plan.sample)))
    assert list(plan.sample) == sorted(set(plan.sample))
    assert len(plan.sample) == min(256, plan.images)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_a_limit_spreads_evenly(total: int, limit: int) -> None:
    """Distinct, ascending, and no gap more than one larger than another."""
    chosen = spread(total, limit)
    assert len(chosen) == min(total, limit) == len(set(chosen))
    assert chosen == sorted(chosen)
    assert 0 <= chosen[0] <= chosen[-1] < total
    gaps = [b - a for a, b in pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_unit_outside_the_plan_is_an_error() -> None:
    """Never an empty range that looks done."""
    plan = make_plan(10, layer_bytes=1, image_bytes=1, identity={}, batch=4)
    with pytest.raises(IndexError):
        plan.unit_range(plan.units)


def test_a_batch_has_no_more_images_than_there_are() -> None:
    """However many are asked for; memory is allocated for a batch."""
    plan = make_plan(10, layer_bytes=1, image_bytes=1, identity={}, batch=10**13)
    assert (plan.batch, plan.unit, plan.at_once, plan.units) == (10, 10, 10, 1)
    plan = make_plan(10, layer_bytes=1, image_bytes=1, identity={}, batch=4, at_once=10**13)
    assert (plan.batch, plan.unit, plan.at_once, plan.units) == (4, 12, 12, 1)


def test_batches_follow_the_size_of_the_attention() -> None:
    """A chunk is near 4 MiB on a CPU, and four times that on a card."""
    deit = {"layer_bytes": 3 * 197**2 * 2, "image_bytes": 12 * 3 * 197**2 * 2, "identity": {}}
    assert make_plan(50_000, **deit).batch == 16
    assert make_plan(50_000, **deit, gpu=True).batch == 64
    large = {"layer_bytes": 16 * 197**2 * 2, "image_bytes": 24 * 16 * 197**2 * 2, "identity": {}}
    assert make_plan(50_000, **large).batch == 2


def test_each_thread_has_several_units() -> None:
    """As far as images reach: threads that all wait for a card at once, or for the last of them, do nothing."""
    none = {"layer_bytes": 12 * 197**2 * 2, "image_bytes": 65_000, "identity": {}, "gpu": True}
    assert most_at_once(16_000, 16, 65_000, threads=16) == 125
    assert make_plan(16_000, **none, at_once=64, threads=16).unit == 64
    assert (
        most_at_once(64_000, 16, 65_000, threads=16) == make_plan(64_000, **none, at_once=256, threads=16).unit == 256
    )
    assert most_at_once(16_000, 16, 65_000) == make_plan(16_000, **none, at_once=256).unit == 256
    # Whatever the threads, chunks are the same, and few threads change no plan.
    assert make_plan(16_000, **none, threads=64).batch == make_plan(16_000, **none).batch == 16
    assert make_plan(16_000, **none, threads=4) == make_plan(16_000, **none)


def test_what_all_threads_get_from_a_card_is_bounded() -> None:
    """Full maps of base/16: 11 MB an image."""
    assert most_at_once(100_000, 16, 11_200_000, threads=2) == 191
    assert most_at_once(100_000, 16, 11_200_000, threads=16) == 23
    assert most_at_once(100_000, 16, 11_200_000, threads=64) == 16


def test_a_digest_tells_lists_apart() -> None:
    """Also those whose texts join to the same."""
    assert digest([["ab", "c"]]) != digest([["a", "bc"]])
    assert digest([["a"]]) == digest([("a",)])
