"""Statistics with parameters, and statistics of a user's own, through the same pass as ours."""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
import sys
import types
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.analysis import formulas as f
from attlas.analysis.statistic import Statistic
from attlas.engine.store.store import ArraySpec, Store
from attlas.errors import AttlasError, UsageError
from support_statistics import (
    BROKEN,
    IMAGES,
    NORMED,
    SPEC,
    attention,
    drift,
    fill_unit,
    good,
    make_store,
    strongest,
)

catalog = pytest.importorskip("attlas.analysis.catalog")
statistics = pytest.importorskip("attlas.analysis.statistics")
views = pytest.importorskip("attlas.analysis.kernels.views")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    make_store(path)
    return path


def stored(path: Path) -> np.ndarray:
    return Store(path).read("attention").astype(np.float64)


# -- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_every_statistic_says_all_of_itself(name: str) -> None:
    """Words, unit, dimensions with sizes, a source that the report's bibliography has, kernels that are there."""
    one = catalog.CATALOG[name]
    bibliography = pytest.importorskip("attlas.analysis.report.text.bibliography")
    assert one.name == name
    assert one.long_name
    assert one.units
    assert not one.cite or one.cite in bibliography.REFERENCES
    assert bool(one.cite) or not one.source
    assert not one.scalar or (one.within is not None and one.within[0] == 0)  # none of ours can be below 0
    assert one.shape(NORMED)
    places = {"layer": views.LAYER, "batch": views.BATCH, "follow": views.FOLLOW}
    for kind, kernel in one.kernels.items():
        assert kind in ("fused", "images") or kernel in places[kind]
    assert catalog.reserved(name)


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_the_documents_table_has_its_unit_its_dimensions_and_its_source(name: str) -> None:
    one = catalog.CATALOG[name]
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text("utf-8")
    short = f"`_{name.removeprefix('score_matrix_')}`"
    row = next(line for line in text.splitlines() if line.startswith("|") and (f"`{name}`" in line or short in line))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    if cells[1] != "the same" and one.formula is not None:
        units = {"rows": "count"}.get(one.units, one.units)
        assert units in cells[1] or "the logit's" in cells[1] or "the residual stream's" in cells[1]
        assert all(dim in cells[1] for dim in one.dims if dim != "head" or name != "head_deviation")
    for arxiv in re.findall(r"\d{4}\.\d{5}", one.source):
        assert arxiv in text


def test_no_kernel_is_left_without_its_statistic() -> None:
    named = {(kind, kernel) for s in catalog.CATALOG.values() for kind, kernel in s.kernels.items()}
    tables = {"layer": views.LAYER, "batch": views.BATCH, "follow": views.FOLLOW}
    assert {(kind, kernel) for kind, table in tables.items() for kernel in table} <= named


# -- parameters -------------------------------------------------------------------------------------------------------


ASKED: dict[str, tuple[str, Any]] = {
    "rollout:start=1,fusion=max,discard=0.9": (
        "rollout.start-1.fusion-max.discard-0.9",
        lambda a: f.rollout([a[:, 0], a[:, 1]], SPEC.grid, start_layer=1, fusion="max", discard=0.9),
    ),
    "rollout:residual=0.25": (
        "rollout.residual-0.25", lambda a: f.rollout([a[:, 0], a[:, 1]], SPEC.grid, residual=0.25)
    ),
    "rollout:readout=mean": (
        "rollout.readout-mean", lambda a: f.rollout([a[:, 0], a[:, 1]], SPEC.grid, tuple(range(1, 7)))
    ),
    "rollout_vit_explain:fusion=mean,discard=0": (
        "rollout_vit_explain.fusion-mean.discard-0",
        lambda a: f.rollout_vit_explain([a[:, 0], a[:, 1]], SPEC.grid, fusion="mean", discard=0),
    ),
    "entropy:bits": ("entropy.unit-bits", lambda a: f.entropy(a) / np.log(2)),
    "entropy:normalized,rows=readout": ("entropy.rows-readout.normalized-true", lambda a: f.entropy(
        a, rows=[0], normalized=True)),
    "entropy_patch:rows=1+4": ("entropy_patch.rows-1_4", lambda a: f.entropy_patch(a, 1, rows=[1, 4])),
    "distance:unit=patches": ("distance.unit-patches", lambda a: f.distance(a, SPEC.grid, (1, 1))),
    "mass_mask:threshold=0.3": (
        "mass_mask.threshold-0.3", lambda a: f.mass_mask(f.readout_map(a, SPEC.grid, 0), 0.3)
    ),
    "class_token_weight": ("class_token_weight", lambda a: f.class_token_weight(a, SPEC.grid, 0)),
    "score_matrix:key": ("score_matrix.reading-key", lambda a: f.score_matrix(a, SPEC.grid, reading="key")),
    "sink_share:times=1.5": ("sink_share.times-1.5", lambda a: f.sink_share(a, SPEC.grid, times=1.5)),
    "received_attention:all": (
        "received_attention.queries-all", lambda a: f.received_attention(a, SPEC.grid, queries="all")
    ),
}  # fmt: skip


def test_what_a_formula_can_be_told_can_be_asked_for_by_name(tmp_path: Path) -> None:
    """In one pass; the name and the attributes say what it is, and an analysis without names brings it up to date."""
    store = make_store(tmp_path / "s.zarr", units=[0, 1, 2])
    statistics.analyze(tmp_path / "s.zarr", [*ASKED, "offset_map_mean:renormalized=false"])
    for k in (3, 4, 5):
        fill_unit(store, k, attention())
    statistics.analyze(tmp_path / "s.zarr")
    store = Store(tmp_path / "s.zarr")
    a = stored(store.path)
    for name, formula in ASKED.values():
        wanted = np.asarray(formula(a), np.float64)
        np.testing.assert_allclose(good(store.read(name)), good(wanted), rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(store.read(f"{name}_mean"), good(wanted).mean(0), rtol=2e-5, atol=1e-6)
    said = dict(store.array("rollout.start-1.fusion-max.discard-0.9_mean").attrs)
    assert said["parameters"] == {"start_layer": 1, "fusion": "max", "discard": 0.9}
    assert store.array("entropy.unit-bits_interval").attrs["units"] == "bits"
    assert store.array("distance.unit-patches").attrs["units"] == "patches"
    wanted = good(np.asarray(f.offset_map(a, SPEC.grid, renormalized=False))).mean(0)
    np.testing.assert_allclose(store.read("offset_map_mean.renormalized-false"), wanted, rtol=1e-6)
    opened = pytest.importorskip("attlas.analysis.dataset").open(store.path)
    assert opened["rollout.start-1.fusion-max.discard-0.9_mean"].dims == ("y", "x")


@pytest.mark.parametrize("text", ASKED)
def test_a_name_is_read_as_it_is_written_whatever_the_order(text: str) -> None:
    name = ASKED[text][0]
    assert catalog.find([text]) == catalog.find([name]) == [name]
    base, _, said = text.partition(":")
    backwards = f"{base}:{','.join(reversed(said.split(',')))}" if said else base
    assert catalog.find([backwards, text]) == [name]
    assert catalog.reserved(name)


def test_the_list_has_every_name_that_is_taken_and_marks_what_is_made_without_one(tmp_path: Path) -> None:
    listed = catalog.described()
    assert [name for name, one in catalog.CATALOG.items() if one.listed] == list(listed)
    made = statistics.analyze(make_store(tmp_path / "s.zarr", units=[0]).path).summed
    default = [name for name, words in listed.items() if ", default" in words]
    own = [name for name in listed if catalog.CATALOG[name].sum_name in made and name != "score_matrix"]  # one array
    assert own == default
    assert "needs a graph of `attlas export --norms`" in listed["value_norm"]


def test_the_words_name_the_value_that_was_asked_for_and_no_other() -> None:
    """Not the default's beside it; a user's own text may have braces that are no parameter."""
    for text, words in {
        "mass_mask": "fewest patches that hold 0.6 of the readout row's patch mass: 1, others 0",
        "mass_mask:threshold=0.3": "fewest patches that hold 0.3 of the readout row's patch mass: 1, others 0",
        "sink_share:times=2.5": "share of patches that receive more than 2.5 times the uniform attention",
        "rollout_vit_explain:fusion=mean": "rollout of vit-explain: mean over heads, 0.9 discarded",
        "received_attention:queries=all": "mean attention of all queries on each patch",
        "entropy:bits": "mean entropy of the attention rows over all keys; here unit bits",
    }.items():
        (one,) = catalog.resolved([text])
        assert one.words == one.attrs["long_name"] == words
    own = Statistic("strongest", ("layer", "head"), strongest, long_name="{times} times $x^{2}$").asked("times=3")
    assert own.words == "3 times $x^{2}$"


def test_defaults_are_not_said() -> None:
    assert catalog.find(["rollout:residual=0.5,start=0,fusion=mean", "entropy:nats"]) == ["rollout", "entropy"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("rollout:begin=1", r"no parameter begin; there are readout=class\|mean\|distilled, residual=0.5, start="),
        ("rollout:fusion=median", "fusion=median: there is mean, max, min"),
        ("rollout:mean", "mean: say readout=mean or fusion=mean"),
        ("rollout:start=first", "start=first: it is a whole number"),
        ("entropy:bit", "no parameter bit; there are rows="),
        ("entropy:normalized=2", "true or false"),
        ("self_mass:unit=pixels", "no parameter unit; it has none"),
        ("rolout:start=1", "did you mean rollout"),
        ("value_norm:x=1", "it has none"),
        ("rows_without_patch_mass", "there is no statistic"),
    ],
)
def test_what_there_is_not_is_one_line_that_lists_what_there_is(made: Path, text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as raised:
        statistics.analyze(made, [text])
    assert "\n" not in str(raised.value)


WRONG = [
    "rollout:start=7", "rollout:start=-1", "rollout:residual=0", "rollout:residual=nan", "rollout:discard=1",
    "rollout:readout=distilled", "rollout_vit_explain:discard=1", "mass_mask:threshold=2", "sink_share:times=-1",
    "entropy:rows=500", "entropy_patch:rows=-1", "effective_tokens:rows=0+500",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_values_that_no_formula_takes_are_one_line_and_leave_the_store_as_it_is(made: Path, text: str) -> None:
    names = Store(made).names
    with pytest.raises(UsageError, match=f"^{text.partition(':')[0]}") as raised:
        statistics.analyze(made, [text])
    assert "\n" not in str(raised.value)
    assert Store(made).names == names


def test_rows_laid_out_for_a_wrong_value_by_an_earlier_version_stop_no_analysis(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    make_store(path)
    store = Store(path, writable=True)
    (wrong,) = catalog.resolved(["rollout:discard=7"])
    store.add([ArraySpec.from_template(wrong.template(store.spec), store.plan)])
    statistics.analyze(path)
    assert "rollout_mean" in Store(path).names
    assert f"{wrong.name}_mean" not in Store(path).names


def test_codes_are_refused_where_a_parameter_makes_single_values_decide(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", dtype="uint8")
    with pytest.raises(UsageError, match="float16"):
        statistics.analyze(tmp_path / "s.zarr", ["rollout:discard=0.5"])
    statistics.analyze(tmp_path / "s.zarr", ["rollout:residual=0.3"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sink_share:times=1e-13", "sink_share.times-1e-13"),
        ("sink_share:times=1.5e-13", "sink_share.times-1.5e-13"),
        ("sink_share:times=0.30000000000000004", "sink_share.times-0.3"),
        ("sink_share:times=1e308", "sink_share.times-1e308"),
        ("rollout:residual=0", "rollout.residual-0"),
    ],
)
def test_names_tell_very_small_values_from_0_and_stay_short(text: str, name: str) -> None:
    (one,) = catalog.resolved([text])
    assert one.name == name
    assert catalog.resolved([name])[0].name == name


def test_parameters_that_no_attention_reaches_are_refused_without_a_warning(made: Path) -> None:
    assert (
        catalog.resolved(["sink_share:times=1e308"])[0].refused(SPEC) == "times 1e+308 is not above 0 and at most 1e9"
    )
    assert "at most 1e9" in catalog.resolved(["norm_outlier_share:times=1e308"])[0].refused(SPEC)
    assert "from 0 to 1e30" in catalog.resolved(["norm_outlier_share:above=1e308"])[0].refused(SPEC)
    with pytest.raises(
        UsageError, match=r"entropy.rows-0_1.*: the name of its array would have \d+ bytes; at most 110"
    ):
        statistics.analyze(made, [f"entropy:rows={'+'.join(map(str, range(60)))}"])


# -- of a user's own --------------------------------------------------------------------------------------------------


def total(attention: Sequence[np.ndarray]) -> float:
    return float(sum(a.sum() for a in attention))


STRONGEST = Statistic("strongest", ("layer", "head"), strongest, "1", "largest attention between patches")
DRIFT = Statistic("drift", ("y", "x"), drift, grouped="asked")
TOTAL = Statistic("total", (), total)
WIDTHS = Statistic("widths", ("layer", "head", "width"), lambda attention: attention.mean(axis=1)[:, :3],
                   sizes={"width": 3}, rows=False)  # fmt: skip


def test_a_statistic_of_ones_own_is_kept_summed_and_grouped_like_ours(tmp_path: Path) -> None:
    """Read once with ours, resumed, by label, and refused where it has become unknown and is needed."""
    store = make_store(tmp_path / "s.zarr", units=[0, 1, 3])
    own = [STRONGEST, DRIFT, TOTAL, WIDTHS, STRONGEST.having({"times": 2.0})]
    first = attlas.analyze(store.path, [*own, "self_mass"])
    assert first.read == sum(len(store.plan.unit_range(k)) for k in (0, 1, 3)) * stored(store.path)[0].size * 2
    attlas.analyze(store.path, [STRONGEST, DRIFT], by="label")
    attlas.analyze(store.path)
    for k in (2, 4, 5):
        fill_unit(store, k, attention())
    attlas.analyze(store.path)  # leaves alone what it cannot make
    with pytest.raises(
        AttlasError, match=r"was summed up by label, and lacks images that are done now.*given it again"
    ):
        attlas.analyze(store.path, ["entropy"], by="label")
    attlas.analyze(store.path, own)
    attlas.analyze(store.path, ["entropy"], by="label")
    opened, a = Store(store.path), stored(store.path)
    peaks = a[..., 1:, 1:].max(axis=(-2, -1))
    np.testing.assert_allclose(good(opened.read("strongest")), good(peaks), rtol=1e-6)
    np.testing.assert_allclose(opened.read("strongest_mean"), good(peaks).mean(0), rtol=1e-6)
    np.testing.assert_allclose(opened.read("strongest.times-2_mean"), 2 * good(peaks).mean(0), rtol=1e-6)
    assert opened.array("strongest_interval").attrs["long_name"] == "largest attention between patches"
    assert opened.read("total_mean") == pytest.approx(4 * 7, rel=1e-2)
    assert opened.dims("total_quantile") == ("quantile",)
    np.testing.assert_allclose(opened.read("widths"), good(a.mean(axis=-2)[..., :3]).mean(0), rtol=1e-6)
    drifts = np.stack([drift(list(image), SPEC.grid) for image in a])
    np.testing.assert_allclose(opened.read("drift_mean"), good(drifts).mean(0), rtol=1e-5)
    members = [i for i in range(IMAGES) if opened.read("label")[i] == "late" and i != BROKEN]
    group = [str(key) for key in opened.read("label_group")].index("late")
    np.testing.assert_allclose(opened.read("strongest_mean_by_label")[group], peaks[members].mean(0), rtol=1e-6)
    np.testing.assert_allclose(opened.read("drift_mean_by_label")[group], drifts[members].mean(0), rtol=1e-5)
    assert pytest.importorskip("attlas.analysis.dataset").open(store.path)["strongest_q_by_label"].shape == (3, 2, 2)


def elsewhere() -> Any:
    """A formula in a module that only this process knows."""
    module = types.ModuleType("elsewhere")
    exec("def formula(attention):\n    return attention[:, 0, 0]", module.__dict__)
    sys.modules["elsewhere"] = module
    return module.formula


def test_processes_make_it_too(tmp_path: Path) -> None:
    """And where they cannot have a formula, they say so."""
    for name in ("threads", "processes"):
        make_store(tmp_path / f"{name}.zarr")
    asked: list[Any] = [STRONGEST, DRIFT, "rollout:fusion=max", "rollout", "score_matrix_key_mean", "self_mass"]
    statistics.analyze(tmp_path / "threads.zarr", asked)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for formula, said in ((lambda attention: attention, "lambda"), (elsewhere(), "No module named 'elsewhere'")):
            one = Statistic("mine", ("layer", "head"), formula)
            with pytest.raises(UsageError, match=f"cannot be imported by another process .*{said}.*; define it in a"):
                statistics.analyze(tmp_path / "processes.zarr", ["self_mass", one], executor=pool)
        statistics.analyze(tmp_path / "processes.zarr", asked, executor=pool)
    one, other = Store(tmp_path / "threads.zarr"), Store(tmp_path / "processes.zarr")
    for name in one.attrs["analyzed"]:
        assert one.read(name).tobytes() == other.read(name).tobytes() or one.array(name).dtype.kind == "T"


def test_value_norms_come_to_whoever_names_them(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", spec=NORMED)
    mine = Statistic("handed", ("layer", "head"), lambda attention, value_norm: (attention @ value_norm[..., None]).sum(
        axis=(-2, -1)))  # fmt: skip
    statistics.analyze(tmp_path / "s.zarr", [mine])
    store = Store(tmp_path / "s.zarr")
    wanted = np.einsum("ilhqk,ilhk->ilh", stored(store.path), store.read("value_norm"))
    np.testing.assert_allclose(good(store.read("handed")), good(wanted), rtol=1e-5)


@pytest.mark.parametrize(
    ("statistic", "match"),
    [
        (
            Statistic("wrong", ("layer", "head"), lambda attention: attention),
            r"gives an array of shape .*not \(head 2\)",
        ),
        (Statistic("raises", ("layer",), lambda attention: 1 / 0), "its formula fails: ZeroDivisionError"),
        (Statistic("endless", ("layer", "width"), lambda attention: attention), "width has no size; give it by sizes"),
        (Statistic("entropy", ("layer",), lambda attention: attention), "name of one of ours"),
        *(
            (Statistic(name, ("layer",), lambda attention: attention), "of an array that a run or an analysis makes")
            for name in ("label", "attention_code", "gradient", "run", "zarr.json", "done", "tokens", "head_output")
        ),
        (Statistic("n" * 111, ("layer",), lambda attention: attention), "would have 111 bytes; at most 110"),
        (Statistic("x_mean_by_label", ("layer",), lambda attention: attention), "of an array that a run or an"),
        (Statistic("sub/name", ("layer",), lambda attention: attention), "no name that an array can have"),
        (dataclasses.replace(DRIFT, formula=lambda gradient: gradient, name="steep"), "attlas export --gradients"),
    ],
)
def test_what_cannot_be_made_is_one_line(tmp_path: Path, statistic: Statistic, match: str) -> None:
    make_store(tmp_path / "s.zarr")
    with pytest.raises(AttlasError, match=match) as raised:
        statistics.analyze(tmp_path / "s.zarr", [statistic])
    assert "\n" not in str(raised.value)


def test_a_formula_may_take_what_there_is_and_no_more() -> None:
    with pytest.raises(UsageError, match="takes images, without a default; there are attention, gradient"):
        Statistic("mine", ("layer",), lambda images: images)
