"""Which rows are wrong: calibrated thresholds, rules, copies, and what the user says."""

from __future__ import annotations

import base64
import copy
import hashlib
import math
import random
import unicodedata
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

import srd
from srd.base.errors import UserError
from srd.curation import likelihoods
from srd.curation.calibration import CANNOT_TELL, HIDDEN, LEAST_SHARE, SURE, calibrate
from srd.curation.cleaning import Reader, Reads, find_wrong, read_for
from srd.curation.damage import TEXTS, chosen_rows, damaged
from srd.curation.detectors.base import (
    DETECTORS,
    HELD_OUT,
    MOST,
    NAMED,
    Damage,
    reason_of,
    register_contrast,
    register_rule,
    work_for,
)
from srd.curation.detectors.empty import empty
from srd.curation.detectors.looping import looping
from srd.curation.groups import MAIN, groups_of, kinds_of
from srd.curation.likelihoods import Tokens
from srd.curation.repair import candidates_read, chosen, passing
from srd.data.corruption import corrupt
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.templates.base import get_template
from tests.data.test_chat import OPENS
from tests.oracle import NOUNS, noun_rows, oracle_losses
from tests.tiny import tiny_tokenizer

ALL = ["empty", "looping", "eos", "match", "near_copy"]


def examples(rows: list[dict[str, Any]]) -> Dataset:
    return examples_from_rows(rows, "rows")


def reader() -> Reader:
    tokenizer = tiny_tokenizer("llama")
    return Reader(None, Encoder(tokenizer, get_template("plain", tokenizer)))


# -------------------------------------------------------------------------------------------------------- calibration


def marked(share: float, apart: float, count: int, seed: int) -> tuple[float, float]:
    """Of a mixture of two bells the share of clean and of wrong rows that are marked."""
    draw = np.random.default_rng(seed)
    wrong = draw.random(count) < share
    values = draw.normal(size=count) + apart * wrong
    found = values >= calibrate(values, draw.normal(size=300) + apart).threshold
    return float(found[~wrong].mean()), float(found[wrong].mean()) if wrong.any() else 0.0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4])
def test_a_share_that_nobody_knows(share: float) -> None:
    """A detector with an area of 0.99 under its curve, at any share: few clean rows, most of the wrong ones."""
    false_alarms, recall = np.mean([marked(share, 3.5, 400, seed) for seed in range(10)], axis=0)
    assert false_alarms <= (0.005 if share == 0 else 0.05)
    assert recall >= (0 if share == 0 else 0.6)


def test_the_share_is_bounded_and_a_detector_says_what_it_can() -> None:
    draw = np.random.default_rng(0)
    good = calibrate(np.concatenate([draw.normal(size=300), draw.normal(size=100) + 4]), draw.normal(size=300) + 4)
    assert 0.2 < good.share < 0.3 and good.can_tell and good.auc > 0.8
    blind = calibrate(draw.normal(size=300), draw.normal(size=300) + 0.3)
    assert blind.auc < CANNOT_TELL and not blind.can_tell and blind.threshold == np.inf
    few = calibrate(draw.normal(size=300), draw.normal(size=5) + 9)
    assert not few.can_tell and few.threshold == np.inf
    rare = calibrate(np.append(draw.normal(size=400), [9.0] * 8), draw.normal(size=300) + 9)
    assert rare.share < LEAST_SHARE and rare.threshold == np.inf


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6])
def test_rows_that_are_wrong_do_not_hide_what_a_detector_can(share: float) -> None:
    """They score as its damage does, so that it tells less of that from the rows than it is asked for."""
    draw = np.random.default_rng(1)
    wrong = np.arange(600) < share * 600
    values = draw.normal(size=600) + 2.7 * wrong
    found = calibrate(values, draw.normal(size=600) + 2.7)
    alone = calibrate(values[~wrong], draw.normal(size=600) + 2.7)
    assert found.auc == pytest.approx(alone.auc * (1 - share) + share / 2, abs=0.02)
    assert SURE <= found.power < alone.auc + 0.01 and found.can_tell  # the share is bounded from below
    assert share == 0.4 or found.auc < CANNOT_TELL
    assert (values[wrong] >= found.threshold).mean() > 0.9 and (values[~wrong] >= found.threshold).mean() < 0.25
    weak = calibrate(values[~wrong], draw.normal(size=600) + 0.8)  # alone among right rows
    assert CANNOT_TELL > weak.auc > HIDDEN and not weak.can_tell


def test_scores_that_are_not_finite_are_never_marked() -> None:
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.normal(size=200), draw.normal(size=60) + 6, [np.nan] * 40])
    threshold = calibrate(values, draw.normal(size=200) + 6).threshold
    with np.errstate(invalid="ignore"):
        assert (values >= threshold).sum() == pytest.approx(60, abs=3)


# ------------------------------------------------------------------------------------------------------- rules, damage


def test_responses_that_say_nothing() -> None:
    said = ["", " \n", "...", "—", "\u200b\u200d", "- - -", "4", "N/A", "😀", "?", "はい"]
    assert empty(said).tolist() == [1] * 6 + [0] * 5


def test_responses_that_loop() -> None:
    loops = [
        "the cat sat and " * 10,
        "It is a list: " + "x " * 30,
        "- item\n" * 20,
        "once and then it goes on " + "again and " * 12,
    ]
    fine = ["no no no no", "one two three four five six seven eight nine ten eleven twelve", "a b c d " * 3,
            " ".join(f"line {i} of the poem" for i in range(30)), "", "word"]  # fmt: skip
    loops += ["foo," * 50, "0" * 400, "print(1);" * 40, f"It is {'7' * 100}"]
    digest = hashlib.sha512(b"").hexdigest()
    fine += [digest, f"{digest} {digest[::-1]}", base64.b64encode(random.Random(0).randbytes(90)).decode(), "1000000",
             f"https://example.org/a/b/a/b/a/b/{digest}", f"{'=' * 60}\n{'A title and more of it. ' * 3}\n{'=' * 60}",
             f"Title\n{'-' * 40}\nText\n"]  # fmt: skip
    assert (looping(loops) >= 0.5).all() and (looping(fine) < 0.5).all()


def test_scripts_without_spaces_can_loop_and_be_cut() -> None:
    said = {
        "Chinese": "这是一个关于如何使用列表的例子。",
        "Japanese": "これはリストの使い方の例です。",
        "Thai": "นี่คือตัวอย่างการใช้รายการ",
    }
    loops = [*(4 * text for text in said.values()), "说" + 6 * "好的，"]
    assert looping([*said.values(), *loops]).tolist() == [0, 0, 0, 1, 1, 1, 12 / 13]
    rows = examples(
        [{"id": f"{name}{i}", "instruction": name, "output": text} for name, text in said.items() for i in range(20)]
    )
    for kind in TEXTS:
        made, places = damaged(rows, np.arange(60), kind, seed=0)
        assert places.tolist() == list(range(60))
        for name, text in said.items():
            own = {row["references"][0] for row in made if row["instruction"] == name}
            assert len(own) > 5 and text not in own
            assert kind != "cut" or all(each and text.startswith(each) for each in own)


def test_self_made_damage_follows_ids_and_leaves_short_rows_out() -> None:
    rows = examples([*noun_rows(30), {"id": "short", "instruction": "a", "output": "yes"}])
    for kind in TEXTS:
        made, places = damaged(rows, np.arange(31), kind, seed=1)
        texts = [row["references"][0] for row in made]
        originals = [rows[int(place)]["references"][0] for place in places]
        assert len(made) == 30 and all(text != original for text, original in zip(texts, originals, strict=True))
        again, _ = damaged(rows.select(range(30, -1, -1)), np.arange(31), kind, seed=1)
        assert {row["id"]: row["references"] for row in again} == {row["id"]: row["references"] for row in made}
    assert all(sorted(text) == sorted(original) for text, original in zip(texts, originals, strict=True))
    ids = [f"e{i}" for i in range(2 * MOST)]
    assert len(chosen_rows(ids, 0)) == MOST
    assert {ids[i] for i in chosen_rows(ids, 0)} == {ids[::-1][i] for i in chosen_rows(ids[::-1], 0)}


# ----------------------------------------------------------------------------------------------------------- findings


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihoods, "pair_losses", oracle_losses)


@pytest.mark.usefixtures("oracle")
@pytest.mark.parametrize("detector", ["match", "pmi"])
def test_each_kind_of_damage_by_its_detector(detector: str) -> None:
    clean = examples(noun_rows(240))
    rows = corrupt(clean, 0.3, ["swapped", "truncated", "duplicated"], seed=3)
    names = [detector if name == "match" else name for name in ALL]
    found = find_wrong(rows, names, reads=read_for(rows, names, reader(), seed=0))
    kinds = np.array(rows["corruption"])
    for kind, why in (("swapped", detector), ("truncated", "eos")):
        assert (found.why[kinds == kind] == why).mean() >= 0.8, kind
    assert found.counts()["near_copy"] >= 0.8 * (kinds == "duplicated").sum()  # of the others one half was damaged
    assert found.wrong[kinds == ""].mean() <= 0.05 + (kinds == "duplicated").sum() / (kinds == "").sum()
    assert all(each.can_tell for each in found.calibrations.values())
    untouched = find_wrong(clean, names, reads=read_for(clean, names, reader(), seed=0))
    assert untouched.wrong.mean() <= 0.03
    assert list(found.columns()) == ["id", *names, "wrong", "why"]


def found_apart(rows: Dataset, names: list[str]) -> tuple[Any, Any]:
    """The kinds of damage and the reasons of rows, each half marked by damage that was made of the other half alone.

    The model reads each half by itself, so that nothing is damaged for one and looked at in the other.
    """
    halves = [rows.select(range(start, len(rows), 2)) for start in (0, 1)]
    reads = [read_for(half, names, reader(), seed=0) for half in halves]
    found = [
        find_wrong(half, names, reads=Reads(own.rows, other.damage))
        for half, own, other in zip(halves, reads, reads[::-1], strict=True)
    ]
    assert all(each.can_tell for half in found for each in half.calibrations.values())
    return np.concatenate([half["corruption"] for half in halves]), np.concatenate([half.why for half in found])


@pytest.mark.usefixtures("oracle")
@pytest.mark.parametrize("detector", ["match", "pmi"])
def test_damage_is_found_by_damage_of_other_rows(detector: str) -> None:
    """A threshold that is made of rows may know these rows; what is looked for here is in none of them."""
    clean, names = examples(noun_rows(480)), [detector, "eos"]
    kinds, why = found_apart(corrupt(clean, 0.2, ["swapped", "truncated"], seed=3), names)
    for kind, name in (("swapped", detector), ("truncated", "eos")):
        assert (why[kinds == kind] == name).mean() >= 0.8, kind
    assert (why[kinds == ""] != "").mean() <= 0.05
    assert (found_apart(clean, names)[1] != "").mean() <= 0.03


@pytest.mark.usefixtures("oracle")
def test_what_was_read_is_kept_as_it_is() -> None:
    rows = examples(noun_rows(40))
    reads = read_for(rows, ALL, reader(), seed=0)
    again = Reads.of(pa.Table.from_pylist(reads.table().to_pylist(), schema=reads.table().schema))
    assert reads.rows.keys() == again.rows.keys() and reads.damage.keys() == again.damage.keys() == {"cut", "swapped"}
    for kind, columns in [("", reads.rows), *reads.damage.items()]:
        other = again.damage[kind] if kind else again.rows
        assert all((columns[name] == other[name]).all() for name in columns)


@pytest.mark.usefixtures("oracle", "own_names")
@pytest.mark.parametrize("damage", ["cut", "garbled", "swapped"])
def test_a_contrast_of_any_readable_score_with_any_damage(damage: Damage) -> None:
    """Damage is read behind the same prompts as its rows, and as an answer that is to replace them."""
    register_contrast("ifd", "are odd", damage=damage)
    srd.register_score("far", harder="high", needs=["mismatched"])(lambda inputs: inputs["mismatched_nll"])
    register_contrast("far", "are far off", damage=damage)
    rows, names = examples(noun_rows(60)), ["ifd", "far"]
    reads = read_for(rows, names, reader(), seed=0)
    found = find_wrong(rows, names, reads=reads)
    assert list(found.calibrations) == names and all(each.damaged == 60 for each in found.calibrations.values())
    if damage == "swapped":
        return
    made, places = damaged(rows, np.arange(60), damage, 0)
    read, groups = candidates_read(rows, places, made, ["match"], reader())
    assert set(groups) == {MAIN}
    assert set(read) <= set(reads.damage[damage])
    for name, values in read.items():
        assert values.tolist() == pytest.approx(reads.damage[damage][name].tolist()), name


@pytest.mark.usefixtures("own_names")
def test_a_contrast_that_cannot_be_read_is_refused_at_once() -> None:
    for score, need in (("gap", "teacher"), ("rouge_l", "answers")):
        with pytest.raises(UserError, match=f"the score '{score}' needs '{need}'.*no contrast can be made of it"):
            register_contrast(score, "are odd", damage="cut")
    with pytest.raises(UserError, match="damage='cute': say swapped, cut, garbled"):
        register_contrast("ifd", "are odd", damage="cute")  # type: ignore[arg-type]
    register_contrast("late", "are late", damage="cut")
    srd.register_score("late", needs=["likeness"])(lambda inputs: inputs["likeness"])
    with pytest.raises(UserError, match="the score 'late' needs 'likeness'"):
        work_for(["late"])


@pytest.mark.usefixtures("oracle", "own_names")
@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda inputs: 1.0, "must give one number for each of the 30 examples, but gives one float"),
        (lambda inputs: inputs["ce"][:-1], "for each of the 30 examples, but gives values of type"),
        (lambda inputs: np.where(inputs["ce"] > 0, np.nan, 1), None),
    ],
)
def test_a_contrast_that_gives_no_number_for_each_row(score: Any, said: str | None) -> None:
    srd.register_score("of_a_test", needs=["losses"])(score)
    register_contrast("of_a_test", "are odd", damage="garbled")
    rows = examples(noun_rows(30))
    with pytest.raises(UserError, match=said) if said else nullcontext():
        found = find_wrong(rows, ["of_a_test"], reads=read_for(rows, ["of_a_test"], reader(), seed=0))
        assert not found.wrong.any()  # the model gives no numbers


def test_a_model_that_was_shown_no_rows_must_be_surer() -> None:
    draw, rows = np.random.default_rng(0), examples(noun_rows(400))
    of = lambda values: {"mismatched_nll": values, **dict.fromkeys(("ce", "length", "end_nll"), np.zeros(len(values)))}  # noqa: E731
    values, damage = draw.normal(size=400) - 2.5 * (np.arange(400) < 120), draw.normal(size=300) - 2.5
    marks = {}
    for shots in (0, 6):
        reads = Reads({**of(values), "shots": np.full(400, shots)}, {"swapped": of(damage)})
        marks[shots] = find_wrong(rows, ["match"], reads=reads).wrong
    assert (marks[0] <= marks[6]).all() and 60 < marks[0].sum() < marks[6].sum() < 160
    assert (
        marks[0].tolist()
        == find_wrong(rows, ["match"], reads=Reads(of(values), {"swapped": of(damage)})).wrong.tolist()
    )


def thai_rows(count: int, cut: int = 0) -> list[dict[str, Any]]:
    """Right rows of another script, the first of them cut."""
    said = ["ปลาหายใจด้วยเหงือก", "ช้างกินหญ้าและใบไม้", "นกใช้ปีกบินขึ้นฟ้า", "ผึ้งเก็บน้ำหวานจากดอกไม้", "หิมะตกลงมาจากเมฆ"]
    full = [f"{said[i % 5]} {said[i // 5 % 5]} {NOUNS[i]}." for i in range(count)]
    texts = [text[: len(text) // 2] if i < cut else text for i, text in enumerate(full)]
    asked = zip(NOUNS, texts, strict=False)
    return [
        {"id": f"th{i:02d}", "instruction": f"Thai of {noun}?", "output": text} for i, (noun, text) in enumerate(asked)
    ]


@pytest.fixture
def unsure_of_thai(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle, which ends less surely what is in Thai, is surprised by it, and told less of it by a prompt."""

    def losses(model: Any, tokenizer: Any, pairs: Any, **options: Any) -> Any:
        totals, lasts = oracle_losses(model, tokenizer, pairs, **options)
        thai = np.array(["THAI" in unicodedata.name(tokenizer.decode(pairs.responses[response])[:1], "")
                         for response in pairs.which[:, 1]])  # fmt: skip
        return totals + 6 * thai, lasts + 6 * thai

    monkeypatch.setattr(likelihoods, "pair_losses", losses)


@pytest.mark.usefixtures("unsure_of_thai")
def test_a_script_that_the_model_knows_less_is_compared_with_itself() -> None:
    english, names = noun_rows(100), ["eos", "match", "wording"]
    found = lambda rows: find_wrong(examples(rows), names, reads=read_for(examples(rows), names, reader(), seed=0))  # noqa: E731
    few = found([*english, *thai_rows(6)])
    assert not few.wrong.any() and {each["Thai"].rows for each in few.elsewhere.values()} == {6}
    assert not any(each["Thai"].has_enough for each in few.elsewhere.values())
    alone = found(english)
    assert alone.calibrations["eos"] == few.calibrations["eos"] and alone.elsewhere == {name: {} for name in names}
    assert "elsewhere" not in str(alone.as_json()) and few.as_json()["eos"]["elsewhere"]["Thai"]["threshold"] is None
    many = found([*english, *thai_rows(60, cut=15)])
    assert many.elsewhere["eos"]["Thai"].can_tell
    assert many.why[100:115].tolist() == ["eos"] * 15 and not many.wrong[:100].any()
    assert many.wrong[115:].mean() <= 0.1


@pytest.mark.usefixtures("oracle")
def test_a_response_is_compared_with_prompts_of_its_group() -> None:
    rows = [*noun_rows(60), *thai_rows(40)]
    tokens = Tokens.of(reader().encoder, examples(rows))
    of_rows = groups_of(kinds_of(examples(rows), tokens.frames))
    assert of_rows.tolist() == 60 * [MAIN] + 40 * ["Thai"]
    others = likelihoods.other_prompts(tokens.ids, tokens.prompts, 4, of_rows)
    assert others[:60].max() < 60 <= others[60:].min() and all(row not in others[row] for row in range(100))
    few = likelihoods.other_prompts(tokens.ids[:64], tokens.prompts[:64], 4, of_rows[:64])  # four ask too few things
    assert few.shape == (64, 4) and (few[:60] < 60).all() and (few[60:] < 60).any()


@pytest.mark.usefixtures("oracle")
def test_damage_that_a_chat_template_refuses_is_left_out() -> None:
    """Where the prompt opens a thought, an answer that does not close it is none."""
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2"))
    tokenizer.chat_template = OPENS
    rows = []
    for row in noun_rows(40):
        thought = f"<think>\nIt may be {row['id']}.\n</think>\n\n{row['output']}"
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": thought}]
        rows.append({"id": row["id"], "messages": turns})
    own = Reader(None, Encoder(tokenizer, get_template("chat", tokenizer)))
    reads = read_for(examples(rows), ["eos", "match", "wording"], own, seed=0)
    assert {kind: len(columns["ce"]) for kind, columns in reads.damage.items()}.keys() == {"swapped", "cut"}
    assert 20 < len(reads.damage["cut"]["ce"]) == len(reads.groups["cut"]) < 40


def test_groups_are_named_by_what_they_differ_in() -> None:
    kinds = [*[("Latin", "chat")] * 5, ("Thai", "chat"), ("", "chat"), ("Latin", "prompt"), ("Thai", "prompt")]
    read = "read in the template prompt"
    assert groups_of(kinds).tolist() == [*[MAIN] * 5, "Thai", MAIN, read, f"Thai, {read}"]
    assert groups_of(kinds[5:6], kinds).tolist() == ["Thai"] and groups_of(kinds[5:6]).tolist() == [MAIN]
    assert groups_of([("", "chat")]).tolist() == [MAIN] and not len(groups_of([]))
    tie = [("Thai", "chat"), ("Latin", "chat")]
    assert groups_of(tie).tolist() == ["Thai", MAIN] and groups_of(tie[::-1]).tolist() == [MAIN, "Thai"]


def test_what_detectors_ask_to_be_read() -> None:
    assert work_for(["empty", "near_copy"]) == ({"losses"}, set())
    assert work_for(["eos"]) == ({"losses", "endings"}, {"cut"})
    assert work_for(["match"]) == ({"losses", "lengths", "endings", "mismatched", "unprompted"}, {"swapped"})


def test_the_user_has_the_last_word_and_copies_keep_one() -> None:
    rows = noun_rows(6)
    rows[1] = {**rows[0], "id": "row-001"}
    rows[2]["output"], rows[3]["output"] = "...", " — "
    find = lambda **named: find_wrong(examples(rows), ["empty", "near_copy"], **named).why.tolist()  # noqa: E731
    assert find() == ["", "near_copy", "empty", "empty", "", ""]
    assert find(keep=["row-002"]) == ["", "near_copy", "", "empty", "", ""]
    assert find(keep=["row-001"]) == ["near_copy", "", "empty", "empty", "", ""]
    assert find(keep=["row-000", "row-001"]) == ["", "", "empty", "empty", "", ""]
    assert find(drop=["row-000", "row-004"]) == [NAMED, "", "empty", "empty", NAMED, ""]
    held_out = examples([{**rows[5], "id": "test"}])
    assert find(held_out=held_out)[5] == HELD_OUT
    assert find(held_out=held_out, keep=["row-005"])[5] == ""


def test_a_plugin_adds_a_rule() -> None:
    register_rule("shouting", "are shouted", least=0.5)(
        lambda texts: np.array([float(text.isupper()) for text in texts])
    )
    try:
        rows = noun_rows(3)
        rows[1]["output"] = "LOUD"
        assert find_wrong(examples(rows), ["shouting"]).why.tolist() == ["", "shouting", ""]
        assert reason_of("shouting") == "are shouted"
        with pytest.raises(UserError, match="there is a detector 'empty' already"):
            register_rule("empty", "x", least=1)(len)  # type: ignore[arg-type]
    finally:
        del DETECTORS._registered["shouting"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda texts: [float(text.isupper()) for text in texts], None),
        (lambda texts: [1.0], "one finite number for each of 3 responses, but gives \\[1.0\\]"),
        (lambda texts: 1.0, "but gives 1.0"),
        (lambda texts: None, "but gives None"),
        (lambda texts: ["long"] * len(texts), "3 responses: could not convert string to float: 'long'"),
        (lambda texts: [math.nan] * len(texts), "but gives \\[nan"),
        (lambda texts, least: texts, "is called with \\(responses\\), but is written for \\(texts, least\\)"),
        ("shouting", "must be a function of \\(responses\\), but is of type str"),
    ],
)
def test_a_rule_that_gives_no_number_for_each_response(rule: Any, said: str | None) -> None:
    try:
        with pytest.raises(UserError, match=f"the detector 'shouting'.*{said}") if said else nullcontext():
            register_rule("shouting", "are shouted", least=0.5)(rule)
            find_wrong(examples(noun_rows(3)), ["shouting"])
    finally:
        DETECTORS._registered.pop("shouting", None)


def conversations(*answers: tuple[str, ...]) -> Dataset:
    rows = []
    for row in answers:
        turns = [({"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}) for text in row]
        rows.append({"messages": [turn for both in turns for turn in both]})
    return examples(rows)


def test_rules_look_at_all_answers_that_are_learnt() -> None:
    loop, fine = "la " * 20, "The sea is blue."
    rows = conversations((fine, fine), (loop, fine), ("...", fine, fine), (fine, loop))
    find = lambda **named: find_wrong(rows, ["empty", "looping"], **named).why.tolist()  # noqa: E731
    assert find() == ["", "", "", "looping"]
    assert find(train_on="all") == ["", "looping", "empty", "looping"]
    assert passing(rows, {}, {}, ["empty", "looping"], "all").tolist() == [True, False, False, False]
    context = rows.map(
        lambda row: {"messages": row["messages"].replace('"assistant",', '"assistant", "train": false,')}
    )
    assert find_wrong(context, ["empty", "looping"], train_on="all").why.tolist() == ["", "", "", "looping"]


# -------------------------------------------------------------------------------------------------------------- repair


def test_the_likeliest_answer_that_passes() -> None:
    rows = noun_rows(4)
    texts = ["A fine answer.", "...", "Another answer.", "word " * 20, "cut of"]
    candidates = examples([{**rows[0], "id": str(i), "output": text} for i, text in enumerate(texts)])
    read = {
        "ce": np.array([2.0, 0.1, 1.5, 0.2, 1.0]),
        "end_nll": np.array([0.1, 0.1, 0.1, 0.1, 7.0]),
        "length": np.ones(5),
    }
    fine = passing(candidates, read, {"eos": 3.0}, ["empty", "looping", "eos", "near_copy"])
    assert fine.tolist() == [True, False, True, False, False]
    assert chosen(np.array([0, 0, 0, 1, 1]), fine, read["ce"]) == {0: 2}
    assert passing(candidates, read, {}, ["eos"]).all()
