"""Scores that ask a model: each against its definition in float64, and a defined value where it has none by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import srd
from srd.base.errors import UserError
from srd.curation import likelihoods as module
from srd.curation.likelihoods import OTHERS, likelihoods, other_prompts
from srd.curation.scores.base import SCORES, measured_needs
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.templates.base import get_template
from srd.models.reading import Reader, abilities
from tests.tiny import tiny_model, tiny_tokenizer

ROWS = [
    {"instruction": "Why is the sky blue?", "output": "Small particles scatter blue light."},
    {"instruction": "Name three animals.", "input": "in the sea", "output": "whale, dolphin, octopus"},
    {"instruction": "How many apples are there?", "output": "12"},
    {"instruction": "What does the function return?", "output": "the number of items in the list " * 3},
    {"instruction": "Why is the sky blue?", "output": "Because of the air."},
    {"instruction": "Question:", "output": "Answer:"},
]
NEEDS = ("losses", "endings", "unprompted", "mismatched")


def encoder_for(family: str, template: str = "plain", **lengths: int) -> Encoder:
    tokenizer = tiny_tokenizer(family)
    return Encoder(tokenizer, get_template(template, tokenizer), encoder_decoder=family in ("t5", "mt5"), **lengths)


def nats(model: Any, prompt: list[int], response: list[int]) -> list[float]:
    """−log p of each token of a response, by a plain pass over one row."""
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id]
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([start + response[:-1]])).logits
        logits = logits[0]
    else:
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    logits = logits.detach().double().numpy()
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [-log_p[place, token] for place, token in enumerate(response)]


@pytest.mark.parametrize(
    ("family", "template"), [("llama", "alpaca"), ("qwen2", "chat"), ("gemma2", "plain"), ("t5", "plain")]
)
def test_every_score_by_its_definition(family: str, template: str) -> None:
    (model, teacher), encoder = (tiny_model(family, seed=seed) for seed in (3, 4)), encoder_for(family, template)
    exact = family != "gemma2"  # its masks are not made for float64
    model, teacher = (model.double(), teacher.double()) if exact else (model, teacher)
    examples = examples_from_rows(ROWS, "rows")
    encoded = encoder.encode(examples)
    table = likelihoods(model, encoder, examples, NEEDS, batch_size=4)
    table["teacher_ce"] = likelihoods(teacher, encoder, examples, ["losses"], batch_size=4)["ce"]
    prompts, responses = encoded["prompt_ids"][:], encoded["response_ids"][:]
    (blank,), _, _ = encoder.prompts([{**examples[0], "instruction": "", "input": "", "messages": ""}])
    others = other_prompts(encoded["id"][:], prompts, OTHERS)
    expected: dict[str, list[float]] = {name: [] for name in ("ce", "eos", "pmi", "ifd", "match", "wording", "gap")}
    for row, response in enumerate(responses):
        own, alone = nats(model, prompts[row], response), nats(model, blank, response)
        elsewhere = [sum(nats(model, prompts[other], response)[:-1]) for other in others[row]]
        expected["ce"].append(sum(own) / len(own))
        expected["eos"].append(own[-1])
        expected["wording"].append(sum(own[:-1]) / (len(own) - 1))
        expected["gap"].append((sum(own) - sum(nats(teacher, prompts[row], response))) / len(own))
        expected["pmi"].append(sum(alone) - sum(own))
        expected["ifd"].append(sum(own) / sum(alone))
        expected["match"].append(sum(elsewhere) / OTHERS - sum(own[:-1]))
    tolerance = {"rel": 1e-9, "abs": 1e-9} if exact else {"rel": 1e-4, "abs": 1e-4}
    for name, values in expected.items():
        assert SCORES.get(name).compute(table) == pytest.approx(values, **tolerance), name  # type: ignore[arg-type]


def test_what_a_score_asks_for_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_needs(["ce", "eos", "pmi", "ifd"]) == {"endings", "unprompted"}
    assert measured_needs("fused") == measured_needs("length") == set()
    responses: list[int] = []
    prompts: list[int] = []
    behind, prefill = Reader.behind, Reader.prefill
    monkeypatch.setattr(Reader, "behind", lambda *a: responses.append(len(a[3])) or behind(*a))
    monkeypatch.setattr(Reader, "prefill", lambda *a: prompts.append(len(a[0].prompts)) or prefill(*a))
    examples, encoder, model = examples_from_rows(ROWS, "rows"), encoder_for("llama"), tiny_model("llama")
    abilities(model)  # is measured once
    for needs, passes, blank in ((["losses", "endings"], 1, 0), (NEEDS, 2 + OTHERS, 1)):
        responses.clear(), prompts.clear()
        likelihoods(model, encoder, examples, needs)
        assert (sum(responses), sum(prompts)) == (passes * len(ROWS), len(ROWS) + blank)


def test_defined_where_there_is_little_to_read() -> None:
    """A response of one token, one that was cut and has no end, a prompt of no tokens, and rows that all ask alike."""
    model = tiny_model("llama", seed=3)
    rows = [{"instruction": "a", "output": "."}, {"instruction": "b", "output": "the list " * 40},
            {"prompt": "", "completion": "running text"}]  # fmt: skip
    encoder = encoder_for("llama", "auto", max_length=120, max_prompt_length=100)
    table = likelihoods(model, encoder, examples_from_rows(rows, "rows"), NEEDS)
    assert all(np.isfinite(values).all() for values in table.values())
    assert table["end_nll"][1] == 0.0 and (table["end_nll"][[0, 2]] > 0).all()
    pmi = SCORES.get("pmi").compute(table)  # type: ignore[arg-type]
    assert pmi[2] == pytest.approx(0, abs=1e-4)  # its prompt is the empty one
    alike = examples_from_rows([{"instruction": "a", "output": word} for word in ("one", "two")], "rows")
    table = likelihoods(model, encoder, alike, NEEDS)
    assert SCORES.get("match").compute(table) == pytest.approx([0, 0])  # type: ignore[arg-type]
    certain = {"ce": np.array([0.0, 1.0]), "length": np.ones(2), "unprompted_nll": np.zeros(2)}
    assert np.isfinite(SCORES.get("ifd").compute(certain)).all()  # type: ignore[arg-type]


def test_no_response_goes_beyond_the_model_behind_another_prompt() -> None:
    """A short question with a long answer, behind a long question: read as far as all its prompts leave room."""
    rows = [*({"instruction": "Why?", "output": "the list " * (60 if i else 2) + str(i)} for i in range(3)),
            {"instruction": "the number of items " * 40, "output": "12"}]  # fmt: skip
    model, examples = (
        tiny_model("gpt2", seed=3),
        examples_from_rows([{**row, "id": str(i)} for i, row in enumerate(rows)], "rows"),
    )
    positions, options = model.config.n_positions, {"max_length": 200, "max_prompt_length": 150}
    limited, free = (encoder_for("gpt2", "plain", positions=most, **options) for most in (200, None))
    assert positions > 400
    lengths = likelihoods(model, free, examples, NEEDS)["length"]
    prompt = max(map(len, limited.encode(examples)["prompt_ids"]))
    table = likelihoods(model, limited, examples, NEEDS)
    assert lengths.max() > 200 - prompt and table["length"].tolist() == np.minimum(lengths, 200 - prompt).tolist()
    cut = table["length"] < lengths
    assert cut.tolist() == [False, True, True, False] and not table["end_nll"][cut].any()
    own = likelihoods(model, limited, examples, ["losses", "endings"])  # behind its own prompt a row fits
    assert own["length"].tolist() == lengths.tolist()
    roomy = likelihoods(model, encoder_for("gpt2", "plain", positions=positions, **options), examples, NEEDS)
    assert all((values == likelihoods(model, free, examples, NEEDS)[name]).all() for name, values in roomy.items())


def test_what_is_known_is_not_read_unless_it_is_of_another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that is cut to fit behind another prompt is another text."""
    rows = [{"id": "a", "instruction": "Why?", "output": "the list " * 60},
            {"id": "b", "instruction": "the number of items " * 40, "output": "12"}]  # fmt: skip
    examples, model, options = (
        examples_from_rows(rows, "rows"),
        tiny_model("gpt2", seed=3),
        {"max_length": 200, "max_prompt_length": 150},
    )
    read: list[int] = []
    original = module.pair_losses
    monkeypatch.setattr(
        module, "pair_losses", lambda *given, **named: (read.append(len(given[2].which)), original(*given, **named))[1]
    )
    for positions, pairs in ((None, 2), (200, 4)):
        encoder = encoder_for("gpt2", "plain", positions=positions, **options)
        expected = likelihoods(model, encoder, examples, ["endings", "mismatched"])
        own = likelihoods(model, encoder_for("gpt2", "plain", **options), examples, ["endings"])
        found = likelihoods(model, encoder, examples, ["endings", "mismatched"], own=(own["ce"], own["end_nll"]))
        assert read[-1] == pairs and read[-3] == 4
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-5), name
    known = {"own": (own["ce"], own["end_nll"])}
    assert likelihoods(None, encoder, examples, ["endings"], **known).keys() == own.keys()
    assert likelihoods(model, encoder, examples, ["unprompted"], **known).keys() == {"length", "unprompted_nll"}


def test_what_is_read_to_be_judged_is_not_told_of_again(caplog: pytest.LogCaptureFixture) -> None:
    """Damage of our own is no row of the user's, and of those it was said where they were made tokens to be learnt."""
    encoder = encoder_for("llama", max_length=6, max_prompt_length=3)
    rows = examples_from_rows([{"instruction": "a b c d e", "output": "f g h i j"}], "rows")
    assert not module.Tokens.of(encoder, rows).ended[0] and not caplog.text
    encoder.encode(rows)
    assert "1 of 1 prompts" in caplog.text and "1 of 1 responses" in caplog.text


def test_other_prompts_ask_something_else_and_follow_the_ids() -> None:
    ids, prompts = [f"e{i}" for i in range(40)], [[i % 8] for i in range(40)]
    drawn = other_prompts(ids, prompts, 3)
    asked = np.array([[prompts[other][0] for other in row] for row in drawn])
    assert all(len({*row, prompt[0]}) == 4 for row, prompt in zip(asked.tolist(), prompts, strict=True))
    order = np.random.default_rng(0).permutation(40)
    again = other_prompts([ids[i] for i in order], [prompts[i] for i in order], 3)
    assert [[ids[order[other]] for other in row] for row in again] == [
        [ids[other] for other in drawn[i]] for i in order
    ]
    assert other_prompts(["a", "b"], [[1], [2]], 3).tolist() == [[1], [0]]
    assert other_prompts(["a", "b"], [[1], [1]], 3).shape == (2, 0)


def test_killed_reading_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, encoder, model = examples_from_rows(ROWS, "rows"), encoder_for("llama"), tiny_model("llama")
    whole = likelihoods(model, encoder, examples, NEEDS, batch_size=2)
    folder, read, own = tmp_path / "blocks", [], module._read

    def killed(*given: Any) -> Any:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(1)
        return own(*given)

    monkeypatch.setattr(module, "_read", killed)
    with pytest.raises(KeyboardInterrupt):
        likelihoods(model, encoder, examples, NEEDS, batch_size=2, folder=folder)
    assert len(list(folder.glob("block-*"))) == 2
    read.clear()
    monkeypatch.setattr(module, "_read", lambda *given: read.append(1) or own(*given))
    again = likelihoods(model, encoder, examples, NEEDS, batch_size=2, folder=folder)
    assert len(read) == len(list(folder.glob("block-*"))) - 2 > 0
    assert all((again[name] == whole[name]).all() for name in whole)


def test_scores_rank_a_table_and_name_what_is_missing() -> None:
    rows = [{"id": f"e{i}", "rouge_l": 0.5, "ce": 2.0, "length": 4, "unprompted_nll": 8.0 + i} for i in range(5)]
    assert srd.rank(rows, by="pmi")["id"][:] == ["e4", "e3", "e2", "e1", "e0"]
    assert srd.rank(rows, by="ifd")["id"][:] == ["e4", "e3", "e2", "e1", "e0"]
    with pytest.raises(UserError, match=r"lack the columns \['end_nll', 'mismatched_nll'\]"):
        srd.rank(rows, by="match")
    gaps = [{**row, "teacher_ce": 1.0 + i / 4, "likeness": i / 5, "end_nll": 5.0 - i} for i, row in enumerate(rows)]
    for name, easiest in (("gap", "e0"), ("near_copy", "e0"), ("eos", "e4")):
        assert srd.rank(gaps, by=name)["id"][0] == easiest, name
