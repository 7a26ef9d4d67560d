"""Near copies: found whatever they are copies of, and nothing else is taken for one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from srd.curation import copies, grams
from srd.curation.copies import copies_of, near_copies
from srd.data.corruption import corrupt
from srd.data.examples import examples_from_rows

WORDS = [f"{first}{last}" for first in ("ka", "lo", "mi", "ne", "su") for last in ("ran", "tel", "vos", "dip", "gum")]


def rows(count: int, seed: int = 0, words: int = 14) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {"id": f"{seed}-{i:03d}", "instruction": " ".join(draw.choices(WORDS, k=8)),
         "output": " ".join(draw.choices(WORDS, k=words))}
        for i in range(count)
    ]  # fmt: skip


def examples(listed: list[dict[str, Any]]) -> Dataset:
    return examples_from_rows(listed, "rows")


def jaccard(one: str, other: str) -> float:
    """By the definition, on words that a space divides."""
    grams = [{tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (one.split(), other.split())]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_similarity_by_its_definition() -> None:
    listed = rows(30)
    for i in range(10):  # a word less, a word more, two texts in one
        words = listed[i]["output"].split()
        text = " ".join([*words[: i + 1], *words[i + 2 :]] if i % 2 else [*words[:i], "new", *words[i:]])
        listed.append({**listed[i], "id": f"copy-{i}", "output": text})
    for i in range(10):
        listed[30 + i]["instruction"] = f"Say: {listed[i]['instruction']}"  # else asking the same would say more
    found = near_copies(examples(listed))
    texts = [f"{row['instruction']} {row['output']}" for row in listed]
    best = [max(jaccard(text, other) for j, other in enumerate(texts) if j != i) for i, text in enumerate(texts)]
    assert 0.7 < min(best[30:]) < 0.8 < max(best[30:])
    assert found.likeness == pytest.approx([value if value >= 0.8 else 0 for value in best])
    assert found.spare(np.zeros(40)).sum() == sum(value >= 0.8 for value in best[30:])


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("The sky is blue because air scatters light.", "the SKY is blue - because air scatters light", True),
        ("yes", "no", False),
        ("yes", "Yes.", True),
        ("天空是蓝色的因为空气散射光线所以看起来是蓝的。", "天空是蓝色的，因为空气散射光线所以看起来是蓝的", True),
        ("天空是蓝色的因为空气散射光线所以看起来是蓝的。", "大海很深并且里面生活着很多的鱼和其他各种动物。", False),
        ("Небо синее потому что воздух рассеивает свет", "небо синее, потому что воздух рассеивает свет!", True),
        ("🙂", "🙃", False),
        ("भारत की राजधानी नई दिल्ली है और यह बहुत बड़ा शहर है।", "भारत की राजधानी नई दिल्ली है, और यह बहुत बड़ा शहर है", True),
        ("서울은 대한민국의 수도이고 아주 큰 도시입니다", "서울은 대한민국의 수도이고, 아주 큰 도시입니다.", True),
        ("กรุงเทพเป็นเมืองหลวงของประเทศไทยและเป็นเมืองใหญ่", "กรุงเทพเป็นเมืองหลวงของประเทศไทย และเป็นเมืองใหญ่", True),
    ],
)  # fmt: skip
def test_what_is_a_copy(one: str, other: str, alike: bool) -> None:
    question = "What do people see when they look up on a fine day in the early summer of the year?"
    pair = [{"instruction": question, "output": text} for text in (one, other)]
    assert (near_copies(examples(pair)).likeness > 0).tolist() == [alike, alike]


@pytest.mark.parametrize(
    ("first", "count", "space"),
    [
        ("क", 37, " "),  # Devanagari
        ("க", 33, " "),  # Tamil
        ("ა", 33, " "),  # Georgian
        ("가", 40, " "),  # Hangul
        ("ạ", 90, " "),  # Vietnamese
        ("ก", 46, ""),  # Thai
        ("ក", 35, ""),  # Khmer
    ],
)
def test_answers_of_the_same_letters_are_no_copies(first: str, count: int, space: str) -> None:
    """Two answers of some length have all letters of their script in common, and none of its words."""
    draw, letters = random.Random(1), [chr(ord(first) + i) for i in range(count)]
    letters = [letter for letter in letters if letter.isalpha()]
    answers = [space.join("".join(draw.choices(letters, k=5)) for _ in range(80)) for _ in range(2)]
    listed = [{"id": str(i), "instruction": CALCULATION, "output": text} for i, text in enumerate(answers)]
    assert not near_copies(examples(listed)).likeness.any()
    edited = [{**row, "id": f"copy-{row['id']}", "output": row["output"] + space + letters[0]} for row in listed]
    assert near_copies(examples([*listed, *edited])).spare(np.zeros(4)).tolist() == [False, False, True, True]


CALCULATION = "Write a function in the language of your choice that calculates what is asked of it here:"


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("def f(a, b): return a + b", "def f(a, b): return a - b", False),
        ("def f(a, b): return a+b", "def f(a, b):\n    return a + b", True),
        ("x^2 + 3x - 4", "x^2 - 3x - 4", False),
        ("x^2 + 3x - 4", "x^2+3x-4", True),
        ("5 > 3", "5 >= 3", False),
        ("5 <= 3", "5 =< 3", False),
        ("+", "*", False),
        ("-5", "5", False),
        ("the answer is -5.", "the answer is 5.", False),
        ("the answer is (-5)", "the answer is -5", True),
        ("2 -1", "2 - 1", True),
        ("x = -5", "x = 5", False),
        ("2x -3", "2x - 3", True),
        ("from -3 to 7", "from 3 to 7", False),
        ("a == b", "a = b", False),
        ("if (!found) return", "if (-found) return", False),
        ("!found", "~found", False),
        ("a != b", "a == b", False),
        ("yes!!!", "yes!", True),
        ("yes! - it is", "yes -- it is", True),
        ("Title\n=====\nyes", "Title\n===\nyes", True),
        ("a & b", "a | b", False),
        ("- one\n- two", "* one\n* two", True),  # bullets
        ("- one\n- two", "one, two", True),
        ("**yes**, it is", "yes, it is", True),  # emphasis
        ("yes, it is!", "yes, it is.", True),
        ("a well-known sea", "a well known sea", True),
        ("it is blue - as air scatters light", "it is blue, as air scatters light", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whose", ["answer", "prompt", "held out"])
def test_signs_that_calculate_are_words_too(one: str, other: str, alike: bool, whose: str) -> None:
    """Where all else is the same: a program that subtracts is no copy of one that adds."""
    pair = [{"instruction": CALCULATION, "output": text} for text in (one, other)]
    if whose == "prompt":
        pair = [{"instruction": f"{CALCULATION}\n{text}", "output": "There it is."} for text in (one, other)]
    if whose == "held out":
        assert (copies_of(examples(pair[:1]), examples(pair[1:])) > 0).tolist() == [alike]
        return
    listed = [*rows(3), *({**row, "id": f"pair-{i}"} for i, row in enumerate(pair))]
    found = near_copies(examples(listed))
    assert (found.likeness > 0).tolist() == [False] * 3 + [alike] * 2
    assert found.spare(np.zeros(5)).sum() == alike


def test_questions_about_one_passage_are_no_copies() -> None:
    """Short ones with short answers, behind a passage that makes nearly all of the words; the same one twice is."""
    asked = ["Is the sea deep?", "Are the whales old?", "Is the sky blue today?", "Do any boats sail there?"]
    passages = [row["output"] for row in rows(20, words=130)]
    listed = [
        {"id": f"{number}-{place}", "instruction": question, "input": passage, "output": ("Yes.", "No.")[place % 2]}
        for number, passage in enumerate(passages)
        for place, question in enumerate(asked)
    ]
    assert not near_copies(examples(listed)).likeness.any()
    again = [{**row, "id": f"again-{row['id']}", "input": f"{row['input']} karan"} for row in listed[:10]]
    again[3]["instruction"] = again[3]["instruction"].upper()
    found = near_copies(examples([*listed, *again]))
    assert found.spare(np.zeros(90)).nonzero()[0].tolist() == list(range(80, 90))
    assert not copies_of(examples(listed[::2]), examples(listed[1::2])).any()
    assert (copies_of(examples(again), examples(listed)) > 0).all()


LAYOUTS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "input": lambda text, other: {"instruction": text, "input": other},
    "instruction": lambda text, other: {"instruction": f"{text}\n{other}"},
    "behind": lambda text, other: {"instruction": f"{other}\n{text}"},
    "between": lambda text, other: {"instruction": f"{text[:300]} {other} {text[300:]}"},
    "system": lambda text, other: {"messages": turns("system", text, "user", other)},
    "user": lambda text, other: {"messages": turns("user", f"{text}\n{other}")},
    "history": lambda text, other: {"messages": turns("user", "Who?", "assistant", text, "user", other)},
}


def turns(*told: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(told[::2], told[1::2], strict=True)]


def laid_out(layout: str, told: Iterable[tuple[str, str]]) -> Dataset:
    """Rows that ask something behind a long text, all with the same answer."""
    asked = [LAYOUTS[layout](*each) for each in told]
    answer = turns("assistant", "positive")
    return examples(
        [
            {"id": f"{i:03}", **({"messages": each["messages"] + answer} if "messages" in each else each),
             **({} if "messages" in each else {"output": "positive"})}
            for i, each in enumerate(asked)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_asked_behind_one_long_text_is_no_copy(layout: str) -> None:
    """An instruction and its inputs, a passage and its questions: but for a word with a slip in it."""
    texts, asked = [row["output"] for row in rows(10, words=150)], [row["instruction"] for row in rows(50, seed=1)]
    told = [(texts[place // 5], text) for place, text in enumerate(asked)]
    assert not near_copies(laid_out(layout, told)).likeness.any()
    slips = [(text, f"{other} again") for text, other in told[:10]]
    assert near_copies(laid_out(layout, [*told, *slips])).spare(np.zeros(60)).nonzero()[0].tolist() == [*range(50, 60)]
    assert not copies_of(laid_out(layout, told[::2]), laid_out(layout, told[1::2])).any()


@pytest.mark.parametrize("layout", ["input", "system", "history"])
def test_inputs_of_a_word_are_told_apart(layout: str) -> None:
    text = rows(1, words=150)[0]["output"]
    assert not near_copies(laid_out(layout, [(text, word) for word in WORDS[:15]])).likeness.any()


def test_a_prompt_that_says_more_of_the_same_is_a_copy() -> None:
    """A question of a benchmark stays one with a hint behind it."""
    question = rows(1, words=60)[0]["output"]
    pair = [{"instruction": text, "output": "karan"} for text in (question, f"{question} Think of it step by step.")]
    assert (near_copies(examples(pair)).likeness > 0).all()


LETTERS = st.text("ab1-+*= \n()!<>/กक็漢あ🙂é.", max_size=12)


@given(st.lists(LETTERS, min_size=1, max_size=6))
def test_the_words_of_a_text_do_not_follow_from_the_texts_beside_it(texts: list[str]) -> None:
    words, counts, few, signs = grams.words_of(texts)
    assert len(words) == len(few) == counts.sum() and len(signs) == counts.sum() + len(texts)
    ends = np.cumsum(counts)
    for number, text in enumerate(texts):
        alone = grams.words_of([text])
        own = slice(ends[number] - counts[number], ends[number])
        assert alone[0].tolist() == words[own].tolist() and alone[2].tolist() == few[own].tolist()
        assert alone[3].tolist() == signs[own.start + number : own.stop + number + 1].tolist()


def test_of_three_that_differ_in_signs_alone_each_stays_with_its_copies() -> None:
    listed = [
        {"id": f"{sign}{i}", "instruction": CALCULATION, "output": f"a {sign} b"} for i in range(3) for sign in "+-/"
    ]
    found = near_copies(examples(listed))
    assert len(np.unique(found.groups)) == 3 and found.spare(np.zeros(9)).sum() == 6


def test_a_frame_is_no_likeness() -> None:
    """Rows that share a long instruction and differ in a short input are no copies; those that share all of it are."""
    frame = "Say whether the following review of a film is friendly or not friendly and answer with just one word:"
    listed = [{"instruction": f"{frame} {row['output']}", "output": "friendly"} for row in rows(200, words=5)]
    assert not near_copies(examples(listed)).likeness.any()
    twice = near_copies(examples([*listed[:100], *listed[:50]]))
    assert twice.spare(np.zeros(150)).sum() == 50


def test_many_copies_of_one_row_are_one_group() -> None:
    listed = [
        *rows(5),
        *({"id": f"same-{i}", "instruction": "a b c d e f", "output": f"g h i j k l m {i}"} for i in range(300)),
    ]
    found = near_copies(examples(listed))
    worse = np.arange(305.0)[::-1]
    assert found.spare(worse).sum() == 299 and not found.spare(worse)[304]


def test_chains_are_split() -> None:
    """Each is like the next, the first is not like the last: not all of them go."""
    text = [f"w{i}" for i in range(60)]
    chain = [{"id": f"c{i}", "instruction": "q", "output": " ".join(text[3 * i : 3 * i + 30])} for i in range(8)]
    found = near_copies(examples(chain))
    assert (found.likeness > 0).all()
    assert 1 < len(np.unique(found.groups)) < 8


def test_the_one_that_stays() -> None:
    found = near_copies(
        examples([{"instruction": "a b c d", "output": "e f g h"}] * 3 + [{"instruction": "x", "output": "y"}])
    )
    assert found.spare(np.array([2.0, 1.0, 3.0, 9.0])).tolist() == [True, False, True, False]
    assert found.spare(np.array([np.inf, 1.0, 1.0, 9.0])).tolist() == [True, False, True, False]
    assert found.spare(np.zeros(4)).tolist() == [False, True, True, False]


def test_damage_that_duplicates_is_found() -> None:
    """The corruption's own near copies: recall, and no clean row that has no copy."""
    clean = examples(rows(240, words=20))
    damaged = corrupt(clean, 0.25, ["duplicated"], seed=1)
    spare = near_copies(damaged).spare(np.zeros(240))
    copied = np.array(damaged["corruption"]) != ""
    assert spare.sum() == copied.sum()
    assert not near_copies(clean).likeness.any()


def test_copies_of_rows_that_are_held_out() -> None:
    train, held_out = rows(40), rows(20, seed=1)
    train[3] = {**held_out[5], "id": "leak", "instruction": held_out[5]["instruction"].replace(" ", "  ").upper()}
    train[9] = train[8]  # copies within the training rows are not asked about
    train[9] = {**train[9], "id": "copy"}
    likeness = copies_of(examples(train), examples(held_out))
    assert np.flatnonzero(likeness).tolist() == [3]


def test_empty_texts_are_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "CHUNK_ROWS", 2)
    listed = [{"instruction": "?", "output": mark} for mark in ("...", "!!", "...")] + rows(4)
    listed = [{**row, "id": str(i)} for i, row in enumerate(listed)]
    assert not near_copies(examples(listed)).likeness.any()


PROMPT = "Tell me of the whale and of the sea in the old book"
LONG = "it is a large animal of the sea that eats small fish " * 2


@pytest.mark.parametrize(
    ("prompt", "response", "compared", "gone"),
    [
        ("{i} " + PROMPT, "{other} {other} {other}", 0, 0),  # nothing in common but a frame
        (PROMPT, LONG, 0, 399),  # all the same: never compared
        (PROMPT, LONG + "{i}", 30, 399),  # all nearly the same
        (PROMPT, "{other} {other} {other} {i}", 12, 0),  # the same prompt, other answers
        ("?", "{other} {other} {other} {i}", 0, 0),  # a prompt that says nothing is nothing in common
    ],
)
def test_how_many_pairs_are_compared(
    prompt: str, response: str, compared: int, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many for each row at most, whatever they have in common: else a million rows take hours."""
    asked: list[int] = []
    original = copies._Index.similarities
    monkeypatch.setattr(
        copies._Index, "similarities", lambda self, one, other: asked.append(len(one)) or original(self, one, other)
    )
    listed = [
        {"id": str(i), "instruction": prompt.format(i=i), "output": response.format(i=i, other=f"w{i * i}x{i % 3}")}
        for i in range(400)
    ]
    found = near_copies(examples(listed))
    assert found.spare(np.zeros(400)).sum() == gone
    assert sum(asked) <= compared * 400 and len(asked) <= 25
