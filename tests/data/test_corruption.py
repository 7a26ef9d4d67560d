"""Corruption spoils exactly what it says, and leaves a record."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset

from srd.base.errors import UserError
from srd.data.corruption import corrupt, leave_out
from srd.data.examples import EXAMPLE_FEATURES, examples_from_rows


def make_examples(count: int = 60, answer: str = "answer {} of ten words, which is long enough to cut") -> Dataset:
    rows = [{"id": f"r{n}", "question": f"q{n}", "answer": answer.format(n)} for n in range(count)]
    return examples_from_rows(rows, "memory")


def test_counts_are_exact_and_the_rest_is_untouched() -> None:
    clean = make_examples()
    spoilt = corrupt(clean, 0.25, ["swapped", "truncated", "duplicated"], seed=1)
    assert Counter(spoilt["corruption"]) == {"": 45, "swapped": 5, "truncated": 5, "duplicated": 5}
    assert spoilt.features == EXAMPLE_FEATURES
    assert spoilt["id"][:] == clean["id"][:]
    for before, after in zip(clean, spoilt, strict=True):
        assert (before == after) == (after["corruption"] == "")
    remainder = corrupt(clean, 8 / 60, ["swapped", "truncated", "duplicated"], seed=1)
    assert Counter(remainder["corruption"])["duplicated"] == 2


def test_swapped_is_a_derangement_of_the_chosen() -> None:
    clean = make_examples()
    spoilt = corrupt(clean, 0.5, ["swapped"], seed=0)
    chosen = [index for index, kind in enumerate(spoilt["corruption"]) if kind == "swapped"]
    before = [clean[index]["references"] for index in chosen]
    after = [spoilt[index]["references"] for index in chosen]
    assert len(chosen) == 30 and sorted(before) == sorted(after)
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert [spoilt[index]["instruction"] for index in chosen] == [clean[index]["instruction"] for index in chosen]


def test_swapped_changes_rows_whose_responses_repeat() -> None:
    rows = [{"question": f"q{n}", "answer": "yes" if n % 2 else f"no {n}"} for n in range(20)]
    clean = examples_from_rows(rows, "memory")
    spoilt = corrupt(clean, 1.0, ["swapped"], seed=0)
    assert all(old["references"] != new["references"] for old, new in zip(clean, spoilt, strict=True))
    with pytest.raises(UserError, match="same response"):
        corrupt(make_examples(10, "always this"), 0.5, ["swapped"], seed=0)


def test_truncated_ends_at_a_word_between_a_tenth_and_a_half() -> None:
    clean = make_examples(answer="one two  three\nfour five six seven eight nine {}")
    spoilt = corrupt(clean, 0.5, ["truncated"], seed=0)
    lengths = set()
    for before, after in zip(clean, spoilt, strict=True):
        if after["corruption"]:
            old, new = before["references"][0], after["references"][0]
            assert old.startswith(new) and old[len(new)].isspace()
            lengths.add(len(new.split()))
    assert lengths <= {1, 2, 3, 4, 5} and len(lengths) > 1
    with pytest.raises(UserError, match="two words"):
        corrupt(make_examples(answer="{}"), 0.5, ["truncated"], seed=0)


def test_truncated_ends_at_a_letter_where_a_script_has_no_spaces() -> None:
    clean = make_examples(answer="第{}个答案，要足够长才能切断。")
    assert (
        sum(map(str.isalpha, clean[9]["references"][0])) == 12
    )  # the digit and the signs go with the letter before them
    spoilt = corrupt(clean, 1.0, ["truncated"], seed=0)
    kept = set()
    for before, after in zip(clean, spoilt, strict=True):
        assert before["references"][0].startswith(after["references"][0])
        kept.add(sum(map(str.isalpha, after["references"][0])))
    assert kept == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("answer", ["word {} and some more words", "word{}", "end{}.", "word{}个答案，很短"])
def test_duplicated_is_a_near_copy_of_an_unspoilt_row(answer: str) -> None:
    clean = make_examples(answer=answer)
    spoilt = corrupt(clean, 0.2, ["duplicated"], seed=0)
    originals = {row["instruction"]: row["references"][0] for row in spoilt if not row["corruption"]}
    copies = [row for row in spoilt if row["corruption"]]
    assert len(copies) == 12
    for copy in copies:
        original, edited = originals[copy["instruction"]], copy["references"][0]
        assert edited != original
        assert abs(len(edited) - len(original)) <= 6 and edited[:3] == original[:3]


def test_depends_on_seed_and_ids_only() -> None:
    clean = make_examples()
    kinds = ["swapped", "truncated"]
    first = {row["id"]: row for row in corrupt(clean, 0.3, kinds, seed=5)}
    turned = {row["id"]: row for row in corrupt(clean.select(range(59, -1, -1)), 0.3, kinds, seed=5)}
    assert first == turned
    assert first != {row["id"]: row for row in corrupt(clean, 0.3, kinds, seed=6)}


def test_nothing_to_do_changes_nothing() -> None:
    clean = make_examples()
    assert corrupt(clean, 0.0, ["swapped"], seed=0)[:] == clean[:]


def test_duplicating_everything_is_refused() -> None:
    with pytest.raises(UserError, match="no row is left"):
        corrupt(make_examples(), 1.0, ["duplicated"], seed=0)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_what_is_left_out_again(share: float) -> None:
    spoilt = corrupt(make_examples(), share, ["swapped", "duplicated"], seed=1)
    assert leave_out(spoilt, "nothing", 1) is spoilt
    known, chance = (leave_out(spoilt, which, 1) for which in ("damaged", "as_many"))
    assert set(known["corruption"]) == {""}
    assert len(known) == len(chance) == 60 - round(share * 60)
    if share:
        assert 0 < sum(map(bool, chance["corruption"])) < 15
    backwards = leave_out(spoilt.select(range(59, -1, -1)), "as_many", 1)
    assert set(backwards["id"]) == set(chance["id"])
    assert set(leave_out(spoilt, "as_many", 2)["id"]) != set(chance["id"]) or not share
