"""Generation and scoring against transformers' own, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from srd.base.errors import RunError
from srd.data.batching import Collator
from srd.models import generation, reading
from srd.models.generation import Decoding, choose, decode_batch, generate, generate_tokens
from srd.models.head import logit_rule, response_losses
from srd.models.reading import Reader, abilities
from srd.models.tokenizers.tokens import decoder_prefix, padding_id, stop_token_ids
from tests.runs import in_turn
from tests.tiny import DECODER_ONLY, FAMILIES, tiny_model, tiny_tokenizer

LONGEST = 16


def make_prompts(count: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(5, 400, random.integers(1, longest)).tolist() for _ in range(count)]


def names(count: int) -> list[str]:
    return [f"e{i}" for i in range(count)]


def answer(model: Any, tokenizer: Any, prompts: list[list[int]], decoding: Decoding, **changes: Any) -> list[list[int]]:
    settings: dict[str, Any] = {"stop": stop_token_ids(model, tokenizer), "names": names(len(prompts)), **changes}
    stop, own = settings.pop("stop"), settings.pop("names")
    return decode_batch(model, prompts, own, decoding, stop, padding_id(tokenizer), **settings)[0]


@torch.no_grad()
def theirs(model: Any, tokenizer: Any, prompt: list[int], stop: list[int]) -> list[int]:
    """One prompt through transformers' generate, without padding."""
    output = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, max_new_tokens=LONGEST, eos_token_id=stop, pad_token_id=padding_id(tokenizer),
    )[0].tolist()  # fmt: skip
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    return output[start:]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", in_turn(FAMILIES, "llama", "gemma2", "t5"))
def test_greedy_answers_equal_transformers(family: str) -> None:
    """Prompts of different length in one batch, several ids that stop, rows that stop early."""
    model, tokenizer, prompts = tiny_model(family, seed=3), tiny_tokenizer(family), make_prompts(8)
    free = [theirs(model, tokenizer, prompt, [tokenizer.eos_token_id]) for prompt in prompts]
    # Ids that some answers come to: these answers stop there, at different positions.
    late = [max(tokens, key=tokens.index) for tokens in free[::3]]  # the one that comes up last
    stop = sorted({tokenizer.eos_token_id, free[1][0], *late})
    expected = [theirs(model, tokenizer, prompt, stop) for prompt in prompts]
    assert len({len(tokens) for tokens in expected}) > 2
    assert answer(model, tokenizer, prompts, Decoding(LONGEST), stop=stop) == expected
    assert all(tokens[-1] in stop or len(tokens) == LONGEST for tokens in expected)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_stopped_rows_leave_the_batch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch shrinks as rows stop, and no step is taken once all have."""
    model, tokenizer, prompts = tiny_model(family, seed=3), tiny_tokenizer(family), make_prompts(12)
    free = answer(model, tokenizer, prompts, Decoding(LONGEST), stop=[])
    assert all(len(tokens) == LONGEST for tokens in free)
    stop = sorted({tokens[2 + i % 4] for i, tokens in enumerate(free[:-1])})
    expected = [theirs(model, tokenizer, prompt, stop) for prompt in prompts]
    sizes: list[int] = []
    original = Reader.step

    def step(self: Any, tokens: Tensor) -> Tensor:
        sizes.append(len(tokens))
        return original(self, tokens)

    monkeypatch.setattr(Reader, "step", step)
    assert answer(model, tokenizer, prompts, Decoding(LONGEST), stop=stop) == expected
    needed = sum(len(tokens) - 1 for tokens in expected)  # the first token comes with the prompt
    assert sum(sizes) < needed / 0.75 + 2 * len(prompts)
    assert len(sizes) <= max(map(len, expected))


def test_a_model_that_bears_padding_is_not_measured_for_prompts_of_equal_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[Any] = []
    alone = reading._alone
    monkeypatch.setattr(reading, "_alone", lambda *arguments: read.append(arguments) or alone(*arguments))
    assert abilities(tiny_model("llama")).padding and len(read) == 1


def test_the_last_token_costs_no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer("llama")
    abilities(model)
    monkeypatch.setattr(Reader, "step", lambda self, tokens: pytest.fail("a needless step"))
    assert [len(tokens) for tokens in answer(model, tokenizer, make_prompts(3), Decoding(1))] == [1, 1, 1]


def test_padding_rows_of_the_head_are_never_chosen() -> None:
    model, tokenizer, prompts = tiny_model("llama", vocab_size=480, seed=1), tiny_tokenizer("llama"), make_prompts(8)
    model.lm_head.weight.data[400:] *= 50
    for decoding in (Decoding(12), Decoding(12, 1.0)):
        wild = answer(model, tokenizer, prompts, decoding, stop=[])
        assert any(token >= 400 for tokens in wild for token in tokens)
        tame = answer(model, tokenizer, prompts, decoding, stop=[], width=400)
        assert all(token < 400 for tokens in tame for token in tokens)


@pytest.mark.parametrize("family", in_turn(FAMILIES, "gemma2", "t5"))
def test_samples_do_not_depend_on_the_batch(family: str) -> None:
    """Alone, in another order, among other prompts: each example has its own stream of random numbers."""
    model, tokenizer, prompts = tiny_model(family, seed=3), tiny_tokenizer(family), make_prompts(9)
    decoding = Decoding(12, 1.0, 0.95, seed=10)
    together = answer(model, tokenizer, prompts, decoding)
    for i in (0, 4, 8):
        assert answer(model, tokenizer, [prompts[i]], decoding, names=[f"e{i}"]) == [together[i]]
    backwards = answer(model, tokenizer, prompts[::-1], decoding, names=names(9)[::-1])
    assert backwards[::-1] == together
    assert answer(model, tokenizer, prompts, Decoding(12, 1.0, 0.95, seed=11)) != together
    same_prompt = answer(model, tokenizer, [prompts[0]] * 4, decoding)
    assert len(set(map(tuple, same_prompt))) > 1 and same_prompt[0] == together[0]


def test_samples_follow_the_distribution() -> None:
    """4,000 draws from a known distribution at T = 2, by a chi-squared test."""
    from scipy.stats import chisquare

    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 3.0])
    uniform = torch.from_numpy(generation._uniforms([f"e{i}" for i in range(4_000)], Decoding(1, 2.0))[:, 0])
    drawn = choose(logits.expand(4_000, -1), Decoding(temperature=2.0), uniform)
    expected = torch.softmax(logits / 2, -1).double().numpy()
    assert chisquare(torch.bincount(drawn, minlength=5).numpy(), 4_000 * expected / expected.sum()).pvalue > 1e-3


def test_nucleus_sampling_keeps_the_smallest_set() -> None:
    probabilities = torch.tensor([0.05, 0.5, 0.15, 0.3])
    logits = probabilities.log().expand(10_000, -1)
    uniform = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    sets = {1e-9: [1], 0.5: [1], 0.51: [1, 3], 0.8: [1, 3], 0.81: [1, 2, 3], 0.96: [0, 1, 2, 3]}
    for top_p, kept in sets.items():
        drawn = choose(logits, Decoding(temperature=1.0, top_p=top_p), uniform)
        share = torch.bincount(drawn, minlength=4) / 10_000
        expected = torch.zeros(4)
        expected[kept] = probabilities[kept] / probabilities[kept].sum()
        torch.testing.assert_close(share, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("width", [37, 511, 512, 513, 1300])
def test_by_blocks_the_same_is_drawn_as_by_a_running_sum(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    weights = torch.softmax(5 * torch.randn(500, width, generator=generator), -1)
    weights = weights.masked_fill(torch.rand(500, width, generator=generator) < 0.3, 0)
    uniform = torch.rand(500, 1, generator=generator, dtype=torch.float64)
    uniform[:4, 0] = torch.tensor([0.0, 1e-12, 1 - 1e-12, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    sums = weights.double().cumsum(-1)
    drawn, total = generation._draw(weights, uniform)
    assert torch.equal(drawn, torch.searchsorted(sums, uniform * sums[:, -1:], right=True))
    assert (weights.gather(-1, drawn) > 0).all()
    torch.testing.assert_close(total, sums[:, -1])


def test_ids_without_probability_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(5, -1)
    edges = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 1e-12, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    for top_p in (1.0, 0.9):
        assert choose(logits, Decoding(temperature=1.0, top_p=top_p), edges).tolist() == [1, 1, 3, 3, 3]


@torch.no_grad()
def plain_scores(model: Any, prompts: list[list[int]], references: list[list[int]]) -> np.ndarray:
    """Mean and last cross-entropy of each reference by a plain forward pass, one at a time, over the own logits."""
    scores = []
    for prompt, reference in zip(prompts, references, strict=True):
        target = torch.tensor(reference)
        if model.config.is_encoder_decoder:
            logits = model(input_ids=torch.tensor([prompt]), labels=target[None]).logits[0]
        else:
            logits = model(input_ids=torch.tensor([prompt + reference])).logits[0, len(prompt) - 1 : -1]
        losses = nn.functional.cross_entropy(logits.double(), target, reduction="none")
        scores.append([losses.mean().item(), losses[-1].item()])
    return np.array(scores)


@pytest.mark.parametrize("family", in_turn(FAMILIES, "gemma2", "t5"))
def test_reference_scores_equal_a_plain_forward_pass(family: str) -> None:
    """And the answers are the same as without scoring: the cache forgets the reference."""
    model, tokenizer, prompts = tiny_model(family, seed=3), tiny_tokenizer(family), make_prompts(9)
    references = [[*tokens, tokenizer.eos_token_id] for tokens in make_prompts(8, 30, seed=1)]
    references.append([tokenizer.eos_token_id])
    stop = stop_token_ids(model, tokenizer)
    answers, scores = decode_batch(
        model, prompts, names(9), Decoding(LONGEST), stop, padding_id(tokenizer), references=references
    )
    assert np.array(scores) == pytest.approx(plain_scores(model, prompts, references), rel=1e-5)
    assert answers == answer(model, tokenizer, prompts, Decoding(LONGEST))
    _, alone = decode_batch(
        model, prompts[-1:], ["e8"], Decoding(1), stop, padding_id(tokenizer), references=references[-1:]
    )
    assert np.array(alone) == pytest.approx(np.array(scores[-1:]), rel=1e-5)
    assert alone[0].mean == alone[0].last  # of one token


def test_the_end_of_sequence_counts_in_the_score() -> None:
    model, tokenizer, prompts = tiny_model("gpt2", seed=3), tiny_tokenizer("gpt2"), make_prompts(2)
    stop, pad = stop_token_ids(model, tokenizer), padding_id(tokenizer)
    assert pad == tokenizer.eos_token_id
    without, with_end = ([[7, 8], [9]], [[7, 8, pad], [9, pad]])
    scores = [
        decode_batch(model, prompts, names(2), Decoding(1), stop, pad, references=r)[1] for r in (without, with_end)
    ]
    for row, reference in enumerate(with_end):
        total = scores[1][row].mean * len(reference)
        last = total - scores[0][row].mean * (len(reference) - 1)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompts[row] + reference[:-1]])).logits[0, -1]
        assert last == pytest.approx(-torch.log_softmax(logits, -1)[pad].item(), rel=1e-4)


def test_a_decoder_start_of_its_own() -> None:
    """The generation config decides where a decoder starts, in scoring as in decoding."""
    model, prompts = tiny_model("t5", seed=3), make_prompts(2)
    model.generation_config.decoder_start_token_id = 7
    references = [[9, 10, 1], [11, 1]]
    _, scores = decode_batch(model, prompts, names(2), Decoding(1), [1], 0, references=references)
    for prompt, reference, score in zip(prompts, references, scores, strict=True):
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[7, *reference[:-1]]])
            ).logits[0]
        expected = nn.functional.cross_entropy(logits, torch.tensor(reference)).item()
        assert score.mean == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_generate_keeps_order_and_mode(family: str) -> None:
    model, tokenizer, prompts = tiny_model(family, seed=3), tiny_tokenizer(family), make_prompts(11)
    model.train()
    done: list[tuple[int, int]] = []
    texts = generate(
        model, tokenizer, prompts, names(11), Decoding(8), batch_size=4, progress=lambda *told: done.append(told)
    )
    assert model.training and done == [(4, 11), (8, 11), (11, 11)]
    model.eval()
    expected = [answer(model, tokenizer, [prompt], Decoding(8))[0] for prompt in prompts]
    assert texts == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert generate(model, tokenizer, prompts, names(11), Decoding(8), batch_size=32) == texts


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_that_were_stopped_go_on_with_the_next_batch(
    temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of work that nobody stopped, and of work without files; other prompts are answered anew."""
    model, tokenizer, prompts = tiny_model("llama", seed=3), tiny_tokenizer("llama"), make_prompts(11)
    way, asked = Decoding(6, temperature), [0]
    done: list[tuple[int, int]] = []
    original = generation.decode_batch

    def stops(*given: Any, **named: Any) -> Any:
        asked[0] += 1
        if asked[0] == 3:
            raise KeyboardInterrupt
        return original(*given, **named)

    def write(prompts: Any, **named: Any) -> Any:
        return generate_tokens(model, tokenizer, prompts, names(11), way, batch_size=2, **named)

    whole = write(prompts)
    monkeypatch.setattr(generation, "decode_batch", stops)
    with pytest.raises(KeyboardInterrupt):
        write(prompts, folder=tmp_path)
    assert write(prompts, folder=tmp_path, progress=lambda *told: done.append(told)) == whole
    assert asked == [3 + 4] and done == [(2, 11), (4, 11), (6, 11), (8, 11), (10, 11), (11, 11)]
    assert write(prompts, folder=tmp_path) == whole and asked == [7]
    others = [[*prompt[:-1], 9 - prompt[-1] % 2] for prompt in prompts]
    assert write(others, folder=tmp_path) == write(others) and asked == [7 + 6 + 6]


def test_long_prompts_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out at once or never, and padding is small."""
    model, tokenizer, prompts = tiny_model("llama"), tiny_tokenizer("llama"), make_prompts(10)
    seen: list[int] = []
    original = generation.decode_batch

    def spy(model: Any, prompts: Any, *rest: Any, **settings: Any) -> Any:
        seen.extend(map(len, prompts))
        return original(model, prompts, *rest, **settings)

    monkeypatch.setattr(generation, "decode_batch", spy)
    generate(model, tokenizer, prompts, names(10), Decoding(1), batch_size=3)
    assert seen == sorted(map(len, prompts), reverse=True)


@pytest.mark.parametrize("family", DECODER_ONLY)
def test_no_scores_are_kept(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's head computes one position per row, for the prompts as well."""
    model, tokenizer, prompts = tiny_model(family), tiny_tokenizer(family), make_prompts(5)
    shapes: list[tuple[int, ...]] = []
    abilities(model)
    model.get_output_embeddings().register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape[:2])))
    answer(model, tokenizer, prompts, Decoding(6), stop=[])
    assert shapes == [(5, 1)] * 6


def test_generation_settings_of_the_checkpoint_are_not_used() -> None:
    """A repetition penalty or forbidden n-grams in a hub model's own settings must not reach answers or ranks."""
    model, tokenizer, prompts = tiny_model("llama", seed=3), tiny_tokenizer("llama"), make_prompts(4)
    expected = answer(model, tokenizer, prompts, Decoding(LONGEST))
    model.generation_config.no_repeat_ngram_size = 2
    model.generation_config.repetition_penalty = 1.5
    model.generation_config.do_sample = True
    assert answer(model, tokenizer, prompts, Decoding(LONGEST)) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_are_named_while_writing(tensor: str, temperature: float) -> None:
    """Also with references, where a NaN score alone would be taken for the data's fault."""
    model, tokenizer, prompts = tiny_model("llama", seed=3), tiny_tokenizer("llama"), make_prompts(4)
    abilities(model), logit_rule(model)
    model.get_parameter(tensor).data[prompts[2][0] % 64] = torch.nan
    prompts[2][0] %= 64
    for references in (None, [[5, 2]] * 4):
        with pytest.raises(RunError, match=rf"not finite.*weights of the model .*tensor '{tensor}'"):
            answer(model, tokenizer, prompts, Decoding(4, temperature), references=references)


def test_rows_that_are_not_finite_are_named_where_weights_are() -> None:
    """Without references an error; with them a score that is NaN, which `data.bad_rows` decides about."""
    model, tokenizer, prompts = tiny_model("llama", seed=3), tiny_tokenizer("llama"), make_prompts(4)
    abilities(model)
    logit_rule(model)
    prompts = [[token % 390 for token in prompt] for prompt in prompts]
    prompts[2][0] = 399
    model.model.embed_tokens.register_forward_hook(
        lambda module, args, output: output.masked_fill((args[0] == 399).any(1)[:, None, None], torch.nan)
    )
    with pytest.raises(RunError, match=r"All weights of .* are finite.*with the examples \['e2'\]"):
        answer(model, tokenizer, prompts, Decoding(1))
    answers, scores = decode_batch(model, prompts, names(4), Decoding(1), [2], 2, references=[[5, 2]] * 4)
    assert np.isfinite(scores).tolist() == [[True] * 2, [True] * 2, [False] * 2, [True] * 2]
    assert answers[2] == [] and all(answers[i] for i in (0, 1, 3))


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_forced_first_token_is_read_and_never_written(family: str) -> None:
    """Training, scoring and writing begin alike; transformers' own generate gives the same answer behind it."""
    from tests.models.test_every_family import tiny_of

    model, prompts, references = tiny_of(family), make_prompts(3, 8), [[9, 10, 2], [11, 2], [3, 2]]
    prompts = [[token % 60 + 3 for token in prompt] for prompt in prompts]
    model.generation_config.decoder_start_token_id, model.generation_config.forced_bos_token_id = 2, 7
    assert decoder_prefix(model) == [2, 7]
    stop, pad = [1], 0
    answers, scores = decode_batch(model, prompts, names(3), Decoding(5), stop, pad, references=references)
    for prompt, tokens in zip(prompts, answers, strict=True):
        output = model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, num_beams=1, max_new_tokens=6, eos_token_id=stop, pad_token_id=pad,
            forced_eos_token_id=None,
        )[0].tolist()  # fmt: skip
        assert output == [2, 7, *tokens]
    rows = [{"prompt_ids": p, "response_ids": r} for p, r in zip(prompts, references, strict=True)]
    batch = Collator(pad, decoder_prefix(model))(rows)
    assert batch["decoder_input_ids"][:, :2].tolist() == [[2, 7]] * 3
    assert len(batch["index"]) == len(batch["targets"]) and batch["targets"][:3].tolist() == [9, 10, 2]
    with torch.no_grad():
        losses = response_losses(model, batch).split([len(reference) for reference in references])
    assert np.array(scores) == pytest.approx(
        np.array([[float(loss.mean()), float(loss[-1])] for loss in losses]), rel=1e-4
    )
