"""Ranks against scipy's, ties, determinism, every kind of table, and what wrong input gets."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import srd
from srd.base.errors import UserError
from srd.curation.curriculum import Curriculum
from srd.curation.fusion import FUSIONS
from srd.curation.ranking import average_rank, fused
from srd.curation.scores.base import SCORES

COLUMNS = ["id", "rouge_l", "ce", "rank_rouge", "rank_ce", "rrf", "rank"]
ROWS = [
    {"id": "a", "rouge_l": 0.2, "ce": 3.0},
    {"id": "b", "rouge_l": 0.9, "ce": 1.0},
    {"id": "c", "rouge_l": 0.2, "ce": 2.0},
    {"id": "d", "rouge_l": 0.0, "ce": 2.0},
]


def independent(rows: list[dict[str, Any]], k: float = 60) -> list[dict[str, Any]]:
    """The definition, with scipy's ranks and Python's sort."""
    rouge = scipy.stats.rankdata([-row["rouge_l"] for row in rows])
    ce = scipy.stats.rankdata([row["ce"] for row in rows])
    ranked = [
        {**row, "rank_rouge": r, "rank_ce": c, "rrf": 1 / (k + r) + 1 / (k + c)}
        for row, r, c in zip(rows, rouge, ce, strict=True)
    ]
    ranked.sort(key=lambda row: (-row["rrf"], row["id"].encode()))
    return [{**row, "rank": place} for place, row in enumerate(ranked, 1)]


# Few values, so that ties are the rule.
score_rows = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=6),
        st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0]) | st.floats(0, 1),
        st.sampled_from([0.0, 0.5, 1.0, 2.5]) | st.floats(0, 50),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row[0],
).map(lambda rows: [{"id": name, "rouge_l": rouge, "ce": ce} for name, rouge, ce in rows])


@given(score_rows, st.sampled_from([0, 1, 60, 1000]))
def test_ranks_equal_an_independent_computation(rows: list[dict[str, Any]], k: float) -> None:
    expected = independent(rows, k)
    ranked = srd.rank(rows, k=k)
    assert ranked.column_names == COLUMNS
    assert ranked.to_list() == expected


@given(st.lists(st.floats(-5, 5) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=50))
def test_equal_values_share_their_average_rank(values: list[float]) -> None:
    array = np.array(values)
    np.testing.assert_array_equal(average_rank(array), scipy.stats.rankdata(array))
    np.testing.assert_array_equal(average_rank(array, descending=True), scipy.stats.rankdata(-array))


# One to four scores of the same rows, ``[S, N]``; few values, so that ties are the rule.
several_scores = st.integers(1, 20).flatmap(
    lambda count: st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]) | st.floats(-50, 50), min_size=count, max_size=count),
        min_size=1,
        max_size=4,
    ).map(np.array)
)


def difficulty(fusion: str, scores: Any) -> Any:
    """Of each row by several scores, ``[N]``."""
    return fused(fusion, list(scores), 60, pa.chunked_array([[str(row) for row in range(scores.shape[1])]]))


@pytest.mark.parametrize("fusion", ["rrf", "mean_rank", "max_rank"])
@given(several_scores, st.integers(0, 1000))
def test_what_holds_of_every_fusion(fusion: str, scores: Any, seed: int) -> None:
    found, ranks = difficulty(fusion, scores), scipy.stats.rankdata(scores, axis=1)
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    assert (difficulty(fusion, scores[:, order]) == found[order]).all()
    assert (difficulty(fusion, scores[::-1]) == found).all()
    places = np.stack([np.unique(values, return_inverse=True)[1] for values in scores])
    assert (difficulty(fusion, places**3 - 7.5) == found).all()  # nothing but the order of values counts
    (alone,) = scipy.stats.rankdata([difficulty(fusion, scores[:1])], axis=1)
    assert (alone == ranks[0]).all()
    alike = np.sort(ranks, axis=0)
    for row in range(scores.shape[1]):
        assert (found[(alike == alike[:, [row]]).all(0)] == found[row]).all()
        assert (found[(ranks >= ranks[:, [row]]).all(0)] >= found[row]).all()  # no easier by any score
        assert (
            fusion == "max_rank"
            or (found[(ranks > ranks[:, [row]]).any(0) & (ranks >= ranks[:, [row]]).all(0)] > found[row]).all()
        )


@given(several_scores)
def test_fused_ranks_by_their_definitions(scores: Any) -> None:
    ranks = scipy.stats.rankdata(scores, axis=1)
    rows = [[Fraction(rank) for rank in row] for row in ranks.T.tolist()]
    assert difficulty("mean_rank", scores).tolist() == [float(sum(row) / len(row)) for row in rows]
    assert difficulty("max_rank", scores).tolist() == [float(max(row)) for row in rows]
    expected = [-float(sum(1 / (60 + rank) for rank in row)) for row in rows]
    assert difficulty("rrf", scores).tolist() == pytest.approx(expected, rel=1e-14)
    for name, (least, most) in {"mean_rank": (1, ranks.shape[1]), "max_rank": (1, ranks.shape[1]),
                                "rrf": (-len(scores) / 61, -len(scores) / (60 + ranks.shape[1]))}.items():  # fmt: skip
        found = difficulty(name, scores)
        assert (found >= least - 1e-12).all() and (found <= most + 1e-12).all()
    assert (difficulty("mean_rank", scores) <= difficulty("max_rank", scores)).all()


def test_other_scores_that_decide_have_their_column_and_no_other_has() -> None:
    """As the score gives them, whichever end is hard; none takes the place of a column that is no score."""
    rows = [{**row, "length": n, "unprompted_nll": 20.0 + n * n} for n, row in enumerate(ROWS, start=2)]
    ranked = srd.rank(rows, by=["fused", "pmi", "length"])
    assert ranked.column_names == [*COLUMNS, "pmi", "length"]
    information = {row["id"]: row["unprompted_nll"] - row["ce"] * row["length"] for row in rows}
    assert {row["id"]: row["pmi"] for row in ranked} == pytest.approx(information)
    assert srd.rank(rows, by="rouge_l").column_names == COLUMNS
    assert Curriculum(stages=1).assign(ranked).column_names == [*ranked.column_names, "kept", "stage"]


def test_by_hand() -> None:
    """a and c share ROUGE rank 2.5, c and d share cross-entropy rank 2.5."""
    ranked = srd.rank(ROWS)
    assert ranked["id"][:] == ["b", "c", "a", "d"]
    assert ranked["rank"][:] == [1, 2, 3, 4]
    assert ranked["rank_rouge"][:] == [1, 2.5, 2.5, 4]
    assert ranked["rank_ce"][:] == [1, 2.5, 4, 2.5]
    assert ranked["rrf"][0] == pytest.approx(2 / 61)
    assert ranked["rrf"][1] == pytest.approx(2 / 62.5)
    # a and d mirror each other (2.5 and 4 against 4 and 2.5): a tie, which the id breaks
    assert ranked["rrf"][2] == ranked["rrf"][3] == pytest.approx(1 / 64 + 1 / 62.5)


def test_ties_are_broken_by_id() -> None:
    rows = [{"id": name, "rouge_l": 0.5, "ce": 1.0} for name in ("b", "ä", "a10", "a2", "B")]
    assert srd.rank(rows)["id"][:] == ["B", "a10", "a2", "b", "ä"]


def random_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {"id": f"example-{i}", "rouge_l": float(rouge), "ce": float(ce)}
        for i, (rouge, ce) in enumerate(
            zip(random.integers(0, 20, count) / 20, random.integers(0, 30, count) / 7, strict=True)
        )
    ]


@pytest.mark.parametrize("by", ["fused", "rouge_l", "ce", "random"])
def test_the_order_of_the_rows_does_not_matter_to_a_single_byte(by: Any, tmp_path: Any) -> None:
    rows = random_rows(300)
    files = []
    for seed in range(3):
        shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        path = tmp_path / f"{seed}.parquet"
        pq.write_table(srd.rank(shuffled, by=by, seed=7).data.table, path)
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]


def test_random_order_follows_its_seed() -> None:
    rows = random_rows(100)
    orders = [srd.rank(rows, by="random", seed=seed)["id"][:] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(row["id"] for row in rows)
    assert orders[0] != srd.rank(rows)["id"][:]


def test_orders_for_ablations() -> None:
    rows = random_rows(100)
    assert srd.rank(rows, by="rouge_l")["rouge_l"][:] == sorted((row["rouge_l"] for row in rows), reverse=True)
    assert srd.rank(rows, by="ce")["ce"][:] == sorted(row["ce"] for row in rows)
    with_length = [{**row, "length": len(row["id"]) * (i % 5)} for i, row in enumerate(rows)]
    by_length = srd.rank(with_length, by="length")["id"][:]
    lengths = {row["id"]: row["length"] for row in with_length}
    assert by_length == sorted(lengths, key=lambda name: (lengths[name], name))
    # Whatever decides, the fused ranks are reported as they are.
    for by in ("rouge_l", "ce", "random"):
        table = {row["id"]: row["rrf"] for row in srd.rank(rows, by=by).to_list()}
        assert table == {row["id"]: row["rrf"] for row in srd.rank(rows).to_list()}


class Frame:
    """A frame of another library, known by the Arrow interface alone, with views and 64-bit offsets as polars has."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.table = pa.Table.from_pylist(rows)
        self.table = self.table.set_column(0, "id", self.table["id"].cast(pa.string_view()))

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


class Lazy:
    """A frame that is worked out when asked, as polars' lazy ones are."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def collect_schema(self) -> Any:
        return self.frame.table.schema

    def collect(self) -> Frame:
        return self.frame


class OldFrame:
    """A frame with the older exchange protocol alone."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.table = pa.Table.from_pylist(rows)

    def __dataframe__(self, nan_as_null: bool = False, allow_copy: bool = True) -> Any:
        return self.table.__dataframe__(nan_as_null, allow_copy)


TABLES = {
    "list": lambda rows: rows,
    "dataset": datasets.Dataset.from_list,
    "dataset with another order underneath": lambda rows: datasets.Dataset.from_list(rows).shuffle(seed=3),
    "iterator": iter,
    "dataset after select and filter": lambda rows: (
        datasets.Dataset.from_list([*rows, {**rows[0], "id": "e"}, {**rows[0], "id": "f"}])
        .select([5, 3, 2, 1, 0])
        .filter(lambda row: row["id"] != "f")
    ),
    "streamed dataset": lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
    "dataset with a format": lambda rows: datasets.Dataset.from_list(rows).with_format("numpy"),
    "later columns": lambda rows: [rows[0], *({**row, "extra": 1} for row in rows[1:])],
    "other columns of any kind": lambda rows: [{**row, "extra": [1, "a"][i % 2]} for i, row in enumerate(rows)],
    "pandas with other columns of any kind": lambda rows: pd.DataFrame(
        [{**row, "extra": [1, "a"][i % 2]} for i, row in enumerate(rows)]
    ),
    "record batch": lambda rows: pa.RecordBatch.from_pylist(rows),
    "old frame": OldFrame,
    "polars-like": lambda rows: Lazy(Frame(rows)),
    "pandas": pd.DataFrame,
    "pandas with an index": lambda rows: pd.DataFrame(rows, index=range(100, 100 + len(rows))),
    "pandas category": lambda rows: pd.DataFrame(rows).astype({"id": "category"}),
    "arrow": pa.Table.from_pylist,
    "arrow in chunks": lambda rows: pa.concat_tables([pa.Table.from_pylist(rows[:2]), pa.Table.from_pylist(rows[2:])]),
    "arrow large strings": lambda rows: pa.Table.from_pylist(rows).cast(
        pa.schema([("id", pa.large_string()), ("rouge_l", pa.float32()), ("ce", pa.float64())])
    ),
    "any frame": Frame,
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_kind_of_table(kind: str) -> None:
    ranked = srd.rank(TABLES[kind](ROWS))
    assert isinstance(ranked, datasets.Dataset)
    assert ranked["id"][:] == ["b", "c", "a", "d"]
    assert ranked["rank"][:] == [1, 2, 3, 4]
    assert ranked.features["id"] == datasets.Value("string")


def test_polars_itself() -> None:
    polars = pytest.importorskip("polars")
    assert srd.rank(polars.DataFrame(ROWS))["id"][:] == ["b", "c", "a", "d"]


def test_one_row() -> None:
    assert srd.rank(ROWS[:1]).to_list() == srd.rank(pd.DataFrame(ROWS[:1])).to_list()
    assert srd.rank(ROWS[:1])["rank"][:] == [1]


def test_numbers_as_ids() -> None:
    rows = [{"id": 10 - i, "rouge_l": 0.1 * i, "ce": 1} for i in range(3)]
    assert srd.rank(rows)["id"][:] == ["8", "9", "10"]


def test_reflection_columns_may_stay() -> None:
    rows = [{"response": f"text {row['id']}", **row, "extra": 1} for row in ROWS]
    assert srd.rank(rows).column_names == COLUMNS


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("column", ["rouge_l", "ce"])
def test_a_score_that_is_not_finite_names_its_example(column: str, bad: float | None) -> None:
    rows = [*ROWS, {"id": "culprit", "rouge_l": 0.5, "ce": 1.0, column: bad}]
    with pytest.raises(UserError, match=r"1 of 5 examples.*culprit.*bad_rows=drop"):
        srd.rank(rows)


def test_bad_rows_can_be_dropped(caplog: pytest.LogCaptureFixture) -> None:
    bad = [{"id": f"bad{i}", "rouge_l": math.nan, "ce": 1.0} for i in range(7)]
    ranked = srd.rank([*bad[:3], *ROWS, *bad[3:]], bad_rows="drop")
    assert ranked.to_list() == srd.rank(ROWS).to_list()
    assert "dropped 7 examples" in caplog.text and "bad0" in caplog.text and "…" in caplog.text
    with pytest.raises(UserError, match="no example has a finite score"):
        srd.rank(bad, bad_rows="drop")


def test_a_length_that_is_missing_is_refused_too() -> None:
    rows: list[dict[str, Any]] = [{**row, "length": 3.0} for row in ROWS]
    rows[2]["length"] = None
    with pytest.raises(UserError, match=r"1 of 4 examples has a score that is not finite: c \(.*length"):
        srd.rank(rows, by="length")


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize("by", ["half", ["half", "ce"], ["length", "half"]])
@pytest.mark.parametrize("harder", ["high", "low"])
def test_a_registered_score_that_is_not_finite_counts_as_any_other(by: Any, harder: Any) -> None:
    odd = {"b": math.nan, "d": math.inf}
    srd.register_score("half", harder=harder, needs=["losses"])(
        lambda inputs: [odd.get(name, 1.0) for name in inputs.table["id"].to_pylist()]
    )
    rows = [{**row, "length": 3.0} for row in ROWS]
    with pytest.raises(UserError, match=r"2 of 4 examples have a score that is not finite: b \(.*score half nan.*drop"):
        srd.rank(rows, by=by)
    ranked = srd.rank(rows, by=by, bad_rows="drop").to_list()
    assert ranked == srd.rank([row for row in rows if row["id"] not in odd], by=by).to_list() and len(ranked) == 2


@pytest.mark.parametrize("kind", [list, pa.Table.from_pylist, pd.DataFrame, datasets.Dataset.from_list])
@pytest.mark.parametrize(("by", "names"), [
    ("ce", ["id", "ce", "rank_ce", "rank"]),
    ("rouge_l", ["id", "rouge_l", "rank_rouge", "rank"]),
    ("length", ["id", "rank", "length"]),
    ("random", ["id", "rank", "random"]),
    (["ce", "length"], ["id", "ce", "rank_ce", "rank", "length"]),
])  # fmt: skip
def test_what_does_not_decide_may_be_missing_or_empty(kind: Any, by: Any, names: list[str]) -> None:
    rows = [{**row, "length": float(place), "note": None} for place, row in enumerate(ROWS)]
    own = srd.rank(kind([{name: row[name] for name in {*names} & {*row}} for row in rows]), by=by)
    assert own.column_names == names
    (unused, *_) = {"rouge_l": "rank_rouge", "ce": "rank_ce"}.keys() - {*names}
    rows[1] |= {unused: None}
    rows[2] |= {unused: math.inf}
    ranked = srd.rank(kind(rows), by=by)
    assert ranked.select_columns(names).to_list() == own.to_list()
    for row in rows[1:3]:
        place = ranked["id"][:].index(row["id"])
        assert ranked["rrf"][place] is None and ranked[unused][place] is None  # which JSON can say, too
    assert sorted(filter(None, ranked["rank_ce" if unused == "ce" else "rank_rouge"])) == [1, 2]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([*ROWS, {"id": "b", "rouge_l": 0.1, "ce": 0.1}], "1 id occurs more than once in the scores: b"),
        ([{"id": "a", "rouge_l": 0.1}], r"lack the columns \['ce'\]; they have \['id', 'rouge_l'\]"),
        ([{"name": "a"}], r"lack the columns \['id', 'rouge_l', 'ce'\]"),
        ([], "no rows|lack the columns"),
        (datasets.Dataset.from_dict({"id": [], "rouge_l": [], "ce": []}), "no rows"),
        ([{"id": None, "rouge_l": 0.1, "ce": 1.0}], "1 row of the scores has no id"),
        ([{"id": "a", "rouge_l": "high", "ce": 1.0}], "column 'rouge_l' does not hold numbers"),
        ([{"id": "a", "rouge_l": [0.1], "ce": 1.0}], "column 'rouge_l' does not hold numbers"),
        ([{"id": [1], "rouge_l": 0.1, "ce": 1.0}], "column 'id' does not hold"),
        ({"id": ["a"]}, "cannot take a dict .*Put a single row into a list"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}), "a DatasetDict .train.*Choose one split"),
        ([1, 2], "row 1 of the scores is a int, expected a dict"),
        ("scores.jsonl", "cannot take a str"),
        (3, "cannot take a int"),
        ([{"id": 1, "rouge_l": 0.1, "ce": 1.0}, {"id": "b", "rouge_l": 0.1, "ce": 1.0}], "'id' .* do not go together"),
        ([{"id": 0.5, "rouge_l": 0.1, "ce": 1.0}], "column 'id' does not hold names"),
        ([{"id": True, "rouge_l": 0.1, "ce": 1.0}], "column 'id' does not hold names"),
        ([{"id": "a", "rouge_l": "0.1", "ce": 1.0}], "column 'rouge_l' does not hold numbers"),
        ([{"id": "a", "rouge_l": 0.1, "ce": True}], "column 'ce' does not hold numbers"),
        (datasets.Dataset.from_list(ROWS).filter(lambda row: False), "no rows"),
        (pd.DataFrame(ROWS).head(0), "no rows"),
        (pd.DataFrame({"id": [1, "b"], "rouge_l": [0.1, 0.2], "ce": [1.0, 2.0]}), "cannot be read"),
    ],
)
def test_wrong_tables(scores: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        srd.rank(scores)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="unknown score 'rouge' to rank by; did you mean 'rouge_l'"):
        srd.rank(ROWS, by="rouge")
    for k in (-1, math.nan, 10**400):
        with pytest.raises(UserError, match=f"k of the rank fusion is {k!s:.40}, but"):
            srd.rank(ROWS, k=k)
    with pytest.raises(UserError, match="unknown score '3' to rank by"):
        srd.rank(ROWS, by=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown bad_rows 'skip'"):
        srd.rank(ROWS, bad_rows="skip")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="k of the rank fusion is 60"):
        srd.rank(ROWS, k="60")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the seed is -1"):
        srd.rank(ROWS, by="random", seed=-1)
    with pytest.raises(UserError, match=r"lack the columns \['length'\]"):
        srd.rank(ROWS, by="length")
    known = ["ce", "eos", "gap", "ifd", "length", "match", "near_copy", "pmi", "random", "rouge_l", "wording"]
    assert SCORES.names() == known


def test_many_rows() -> None:
    count = 200_000
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "id": pa.array([f"example-{i}" for i in range(count)]),
            "rouge_l": np.round(random.random(count), 4),
            "ce": random.exponential(2, count),
        }
    )
    started = time.perf_counter()
    ranked = srd.rank(table)
    assert time.perf_counter() - started < 20
    rrf = np.asarray(ranked.data["rrf"])
    assert len(ranked) == count and (np.diff(rrf) <= 0).all()
    assert ranked[0]["rank"] == 1 and ranked[count - 1]["rank"] == count


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda ranks, k: ranks[0][:2], "but gives values of type float64 \\[2\\]"),
        (lambda ranks, k: None, "but gives one NoneType"),
        (lambda ranks, k: 0.5, "but gives one float"),
        (lambda ranks, k: ["a", "b", "c"], "but gives values of type <U1 \\[3\\]"),
        (lambda ranks, k: np.array([math.nan, 1.0, math.inf]), "2 are NaN or infinite, first of 'a'"),
        (lambda ranks, k: np.array(ranks), "but gives values of type float64 \\[2, 3\\]"),
        (lambda ranks, k: list(ranks[0]), None),
    ],
)
def test_a_fusion_gives_one_number_for_each_example(given: Any, said: str | None) -> None:
    scores = [{"id": name, "rouge_l": 0.1 * place, "ce": 1.0 * place} for place, name in enumerate("abc")]
    FUSIONS.register("of_a_test")(given)
    try:
        if said is None:
            assert len(srd.rank(scores, fusion="of_a_test")) == 3
        else:
            with pytest.raises(UserError, match=f"the fusion 'of_a_test' must give one .* of the 3 examples.*{said}"):
                srd.rank(scores, fusion="of_a_test")
    finally:
        del FUSIONS._registered["of_a_test"]
