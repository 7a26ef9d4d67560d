"""What a model is shown before it reads a row: right in every frame, never the row itself, and read once."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from srd.curation.cleaning import Reader, read_for
from srd.curation.likelihoods import OTHERS, Pairs, Tokens, other_prompts, pair_losses
from srd.curation.shots import SHOTS, shown
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.models import reading
from tests.curation.test_likelihoods import encoder_for, nats
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = ("sky", "blue", "apples", "animals", "function", "list", "items", "number", "small", "light", "air", "sea",
         "whale", "dolphin", "octopus", "cat", "dog")  # fmt: skip


def rows(count: int = 2 * SHOTS + 4, **more: str) -> list[dict[str, str]]:
    """Different short questions with answers."""
    return [
        {"instruction": f"What is {word}?", "output": f"the {word} {i}", **more} for i, word in enumerate(WORDS[:count])
    ]


@pytest.mark.parametrize(("family", "template"), [("qwen2", "chat"), ("llama", "plain")])
def test_rows_stand_before_each_prompt_as_earlier_turns(family: str, template: str) -> None:
    examples, encoder = examples_from_rows(rows(input="of these"), "rows"), encoder_for(family, template)
    tokens = Tokens.of(encoder, examples)
    before = shown(encoder, examples, tokens)
    assert len(before.first) == SHOTS and len(before.prompts) == 2 * (len(examples) + 1)
    asked = [f"{row['instruction']}\n\n{row['input']}" for row in examples]
    wide = encoder_for(family, template, max_prompt_length=2000, max_length=3000)
    for row in range(len(examples)):
        ((place, response),) = before.pairs(np.array([[row, row]]), np.array([row])).tolist()
        text = encoder.tokenizer.decode(before.prompts[place])
        seen = [i for i in range(len(examples)) if examples[i]["references"][0] in text]
        assert len(seen) == SHOTS and row not in seen and response == row
        order = sorted(seen, key=lambda i: text.index(examples[i]["references"][0]))
        turns = [{"role": role, "content": said} for i in order
                 for role, said in (("user", asked[i]), ("assistant", examples[i]["references"][0]))]  # fmt: skip
        turns.append({"role": "user", "content": asked[row]})
        told = {**examples[row], "messages": json.dumps(turns), "instruction": "", "input": ""}
        assert before.prompts[place] == wide.prompts([told])[0][0]


def test_rows_of_several_teachers_are_shown_as_those_of_one() -> None:
    """Whose a row is stands beside what it asks; tools, which stand there too, would not be shown."""
    examples, encoder = examples_from_rows(rows(), "rows"), encoder_for("llama")
    beside = lambda value: examples.map(lambda row: {"extra": json.dumps(value)}, features=examples.features)  # noqa: E731
    made = [shown(encoder, each, Tokens.of(encoder, each)) for each in (examples, beside({"teacher": "law"}))]
    assert made[0].shots.all() and list(made[0].prompts) == list(made[1].prompts)
    assert made[0].first.tolist() == made[1].first.tolist()
    tools = beside({"tools": [{"type": "function", "function": {"name": "weather"}}]})
    assert not shown(encoder, tools, Tokens.of(encoder, tools)).shots.any()


def test_none_where_they_cannot_be() -> None:
    cases = {
        "few rows": (rows(2 * SHOTS - 1), encoder_for("llama")),
        "an encoder-decoder": (rows(), encoder_for("t5")),
        "no place": (rows(), Encoder(encoder_for("llama").tokenizer, encoder_for("llama").template, positions=520)),
    }
    for name, (made, encoder) in cases.items():
        examples = examples_from_rows(made, "rows")
        tokens = Tokens.of(encoder, examples)
        before = shown(encoder, examples, tokens)
        assert not len(before.first) and before.prompts[0] == tokens.prompts[0], name
        pairs = np.array([[0, 0], [3, 1]])
        assert before.pairs(pairs, pairs[:, 1]).tolist() == pairs.tolist(), name


def test_readings_are_those_behind_what_is_shown() -> None:
    """Against plain passes: each response behind the set without its row."""
    examples, encoder, model = examples_from_rows(rows(), "rows"), encoder_for("llama"), tiny_model("llama", seed=3)
    reads = read_for(examples, ["eos", "match"], Reader(model, encoder, 4), 0)
    tokens = Tokens.of(encoder, examples)
    before = shown(encoder, examples, tokens)
    others = other_prompts(tokens.ids, tokens.prompts, OTHERS + 1)  # the last one is that of the self-made damage
    half, blank = len(before.prompts) // 2, len(examples)
    for row, response in enumerate(tokens.responses):
        side = half * (row in before.first)
        own, alone, *elsewhere = (
            nats(model, before.prompts[place + side], response) for place in (row, blank, *others[row])
        )
        compared = (np.mean([sum(each[:-1]) for each in elsewhere[:-1]]) + sum(alone[:-1])) / 2
        assert reads.rows["end_nll"][row] == pytest.approx(own[-1], rel=1e-4)
        assert reads.rows["unprompted_nll"][row] == pytest.approx(sum(alone), rel=1e-4)
        assert reads.rows["mismatched_nll"][row] == pytest.approx(compared, rel=1e-4)
        swapped = {name: values[row] for name, values in reads.damage["swapped"].items()}
        assert swapped["mismatched_nll"] == pytest.approx(compared, rel=1e-4)
        assert swapped["ce"] * swapped["length"] == pytest.approx(sum(elsewhere[-1]), rel=1e-4)
    assert {kind: len(each["ce"]) for kind, each in reads.damage.items()} == {"swapped": 16, "cut": 16}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_prompts_begin_with_is_read_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty-four tokens and more, also where a prompt is nothing else, and by families that cannot take it further."""
    model, draw = tiny_model(family, seed=3), np.random.default_rng(0)
    starts = [draw.integers(5, 60, 70).tolist() for _ in range(2)]
    prompts = [[*starts[i % 2], *draw.integers(5, 60, i % 5 + (i < 2)).tolist()] for i in range(9)] + [[7, 8, 9]]
    responses = [draw.integers(5, 60, 1 + i % 3).tolist() for i in range(10)]
    which = np.array([[prompt, response] for prompt in range(10) for response in (prompt, (prompt + 3) % 10)])
    read: Counter[bool] = Counter()
    reads_shared = reading.Reader._reads_shared
    monkeypatch.setattr(reading.Reader, "_reads_shared", lambda own: _counted(read, reads_shared(own)))
    totals, lasts = pair_losses(model, tiny_tokenizer(family), Pairs(prompts, responses, which), batch_size=16)
    for (prompt, response), total, last in zip(which, totals, lasts, strict=True):
        expected = nats(model, prompts[prompt], responses[response])
        assert (total, last) == pytest.approx((sum(expected), expected[-1]), rel=1e-3, abs=1e-3)
    assert family != "llama" or read == {True: 2}


def _counted(read: Counter[bool], found: bool) -> bool:
    read[found] += 1
    return found
