"""What a teacher cache keeps: value and gradient of each tier, its error, kills, damage, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srd.base.errors import RunError, UserError
from srd.base.files import read_sealed
from srd.data.batching import EncodedExamples, learnt_spans
from srd.models.head import HeadWeights, cross_entropy, head_weights
from srd.training.batches import make_collator
from srd.training.cache import building as cache_building
from srd.training.cache.building import build_cache, fill_cache
from srd.training.cache.teacher_cache import TeacherCache, cache_folder, describe
from srd.training.cache.tier_error import measure
from srd.training.loss.divergence import evaluate, slope_function
from srd.training.loss.outcomes import OutcomeHead
from srd.training.loss.response_loss import head_loss
from srd.training.loss.schedules import InterpolatedTeacher
from srd.training.loss.settings import LossSettings
from srd.training.tiers.base import TIERS, make_tier, stored_dtype
from tests.faults import cache_killed_after
from tests.runs import in_turn
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_divergences import NAMES, naive
from tests.training.test_trainer import encoded

ALL = ("exact", "int8", "likelihood", "topk")
V, K = 40, 6


def head_of(seed: int = 0, **more: Any) -> HeadWeights:
    generator = torch.Generator().manual_seed(seed)
    return HeadWeights(torch.randn(V, 12, generator=generator), **more)


def states_of(tokens: int, seed: int = 1) -> Tensor:
    """Hidden states with outlier channels, as real ones have."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.ones(12)
    spread[3], spread[7] = 20.0, 0.01
    return torch.randn(tokens, 12, generator=generator) * spread + spread


def kept(name: str, states: Tensor, targets: Tensor, head: HeadWeights, **options: Any) -> tuple[Tensor, HeadWeights]:
    """What the loss gets of some tokens, and what turns it into targets."""
    tier = make_tier(name, **options)
    learnt = tier.learn(states)
    read = tier.unpack(tier.pack(states, targets, head, learnt), targets.tolist(), learnt)
    return read, tier.head(head, head.vocabulary)


def coarse(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of some ids and of all the others, by definition, ``[n, k + 1]`` in the type of the logits."""
    p = torch.softmax(logits / temperature, -1)
    others = torch.ones_like(p).scatter(-1, ids, 0.0)
    return torch.cat([p.gather(-1, ids), (p * others).sum(-1, keepdim=True)], -1).log()


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tier", ["topk", "likelihood"])
def test_tokens_and_a_rest_are_a_divergence(tier: str, name: str, temperature: float) -> None:
    """Value and gradient in float64 against autograd on the coarse distributions of the tokens that are kept."""
    head, states, targets = head_of(), states_of(9) * 0.2, torch.arange(9)
    read, decoder = kept(tier, states, targets, head, top_k=K, temperatures=[temperature])
    if tier == "likelihood" and temperature != 1:
        with pytest.raises(UserError, match=r"not for 1\.7"):
            decoder.outcomes(read, temperature)
        return
    ids, log_p = decoder.outcomes(read, temperature)
    true = coarse((states @ head.weight.T).double(), ids, temperature)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(9).double())
    torch.testing.assert_close(log_p.double(), true, rtol=2e-3, atol=2e-3)  # float16 on disk
    student = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    own = HeadWeights(torch.randn(V + 3, 5, dtype=torch.float64).requires_grad_(), width=V)
    settings = LossSettings(name, {}, temperature, 0.6, "all")
    loss, _ = head_loss(student, own, targets, settings, torch.tensor(9), teacher_hidden=read, teacher_head=decoder)
    found = torch.autograd.grad(loss, [student, own.weight])
    logits = student @ own.weight[:V].T
    kd = naive(name, coarse(logits, ids, temperature), log_p.double(), 1.0, None).sum()
    ce = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected = (0.4 * ce + 0.6 * temperature**2 * kd) / 9
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(found, torch.autograd.grad(expected, [student, own.weight]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


def test_what_differs_from_text_to_text_goes_with_tokens_and_a_rest() -> None:
    """DistiLLM-2's parameters of each position, on the coarse distributions; and the likelihood of each text."""
    head, states, targets = head_of(), states_of(9) * 0.2, torch.arange(9)
    read, decoder = kept("topk", states, targets, head, top_k=K)
    torch.testing.assert_close(decoder.own_nats(read), cross_entropy(states, head, targets).float())
    columns = {
        "alpha": torch.linspace(0.05, 0.3, 9).double(),
        "own": torch.arange(9).remainder(2).double(),
        "share": torch.linspace(0.5, 1.5, 9).double(),
    }
    student = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    own = HeadWeights(torch.randn(V, 5, dtype=torch.float64))
    loss, _ = head_loss(student, own, targets, LossSettings("distillm2"), torch.tensor(9), teacher_hidden=read,
                        teacher_head=decoder, columns=columns)  # fmt: skip
    ids, log_p = decoder.outcomes(read, 1.0)
    log_q = coarse(student @ own.weight.T, ids, 1.0)
    by_row = {name: column[:, None] for name, column in columns.items()}
    value, slope = evaluate(slope_function("distillm2"), log_p, log_q.detach(), by_row)
    torch.testing.assert_close(loss, value.sum() / 9)
    (expected,) = torch.autograd.grad((slope * log_q).sum() / 9, student)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("tier", ["topk", "likelihood"])
def test_the_divergence_is_nothing_only_where_tokens_and_rest_agree(tier: str) -> None:
    head, states, targets = head_of(), states_of(5) * 0.2, torch.arange(5)
    read, decoder = kept(tier, states, targets, head, top_k=K)
    settings = LossSettings("fkl")
    values = []
    for shift in (0.0, 0.5):
        weight = head.weight.clone()
        weight[:, 3] += shift * torch.arange(V) / V
        student = HeadWeights(weight, width=V)
        _, parts = head_loss(states, student, targets, settings, torch.tensor(5), teacher_hidden=read,
                             teacher_head=decoder)  # fmt: skip
        values.append(parts.kd)
    assert float(values[0].max()) < 1e-5 < 1e-4 < float(values[1].mean()) and all((v >= 0).all() for v in values)


@pytest.mark.parametrize(("tier", "options", "bytes_"), [
    ("exact", {"dtype": "float16"}, 24), ("exact", {"dtype": "bfloat16"}, 24), ("exact", {"dtype": "float32"}, 48),
    ("int8", {}, 14), ("likelihood", {}, 4), ("topk", {"top_k": 5}, 20 + 2 + 4),
    ("topk", {"top_k": 5, "temperatures": [1.0, 2.0]}, 20 + 4 + 4), ("topk", {"top_k": 99}, 4 * V + 2 + 4),
])  # fmt: skip
def test_bytes_of_a_token_are_those_on_disk(tier: str, options: dict[str, Any], bytes_: int) -> None:
    made, states = make_tier(tier, **options), states_of(7)
    tensors = made.pack(states, torch.arange(7), head_of(), made.learn(states))
    assert made.token_bytes(12, V) == bytes_ == sum(t.numel() * t.element_size() for t in tensors.values()) / 7


def test_channels_that_are_far_apart_keep_eight_bits_each() -> None:
    states, tier = states_of(3000), make_tier("int8")
    learnt = tier.learn(states)
    read = tier.unpack(tier.pack(states, torch.arange(0), head_of(), learnt), [], learnt)
    error = (read - states).abs().mean(0) / states.std(0)
    assert float(error.max()) < 0.01 < float(error.max() * 4)
    constant = torch.ones(4, 12)
    assert torch.equal(tier.unpack(tier.pack(constant, torch.arange(0), head_of(), tier.learn(constant)), [],
                                   tier.learn(constant)), constant)  # fmt: skip


@pytest.mark.parametrize(("largest", "dtype"), [(59_000.0, torch.float16), (61_000.0, torch.bfloat16)])
def test_states_too_large_for_float16_are_kept_in_bfloat16(largest: float, dtype: torch.dtype) -> None:
    states = states_of(3)
    states[1, 1] = -largest
    assert make_tier("exact").pack(states, torch.arange(3), head_of(), {})["hidden"].dtype == dtype
    running = {"float32": "float16", "float16": "float16", "bfloat16": "bfloat16", "float64": "float16"}
    assert {name: stored_dtype(name) for name in running} == running


@pytest.mark.parametrize("width", [V, 2**16 - 1, 2**16, 200_000])
def test_ids_are_kept_whole_in_wide_vocabularies(width: int) -> None:
    tier = make_tier("topk", top_k=4)
    ids = [0, 7, min(width - 1, 65_534), width - 1][: 4 if width > 65_535 else 3]
    listed = [[(token, -2.0 - place) for place, token in enumerate(ids)]]
    read = tier.unpack(tier.pack_listed(listed, [7], width), [7], {})
    found, log_p = tier.head(None, width).outcomes(read, 1.0)
    assert found[0].tolist() == [*dict.fromkeys(ids), *[-1] * (4 - len(set(ids)))]
    rest = 1 - sum(math.exp(-2.0 - place) for place in range(len(ids)))
    assert math.isclose(float(log_p[0, -1].exp()), rest, rel_tol=1e-3)


def test_lists_that_fall_short_give_what_they_have() -> None:
    """Fewer tokens than asked for, ids that the student has not, and certainty: a divergence all the same."""
    tier = make_tier("topk", top_k=3)
    listed = [[(5, -0.5)], [(2, -1.0), (V + 9, -1.2), (4, -3.0), (1, -2.0), (0, -4.0)], [(3, 0.0)]]
    packed = tier.pack_listed(listed, [5, 0, 8], V)
    assert packed["target"].isnan().tolist() == [False, False, True]
    head: OutcomeHead = tier.head(None, V)
    read = tier.unpack(packed, [5, 0, 8], {})
    ids, log_p = head.outcomes(read, 1.0)
    assert ids.tolist() == [[5, -1, -1], [2, 1, 4], [3, -1, -1]]
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3).double())
    assert math.isclose(float(log_p[0, 0]), -0.5, rel_tol=1e-3)
    student = torch.randn(3, V, dtype=torch.float64)
    for name in NAMES:
        value, slope = head.compare(read, torch.log_softmax(student, -1), name, {}, 1.0)
        assert torch.isfinite(value).all() and torch.isfinite(slope).all() and (value >= 0).all()


def test_all_tokens_are_no_coarser_than_the_teacher() -> None:
    head, states = head_of(), states_of(6) * 0.1
    read, decoder = kept("topk", states, torch.arange(6), head, top_k=V + 5)
    log_q = torch.log_softmax(torch.randn(6, V, dtype=torch.float64), -1)
    value, slope = decoder.compare(read, log_q, "rkl", {}, 1.0)
    true = naive("rkl", log_q, (states @ head.weight.T).double(), 1.0, None)
    torch.testing.assert_close(value, true, rtol=3e-3, atol=1e-3)
    assert torch.isfinite(slope).all()


# --------------------------------------------------------------------------------------------------- on disk


def rows_of(count: int = 21) -> EncodedExamples:
    return encoded(count, tiny_tokenizer("llama"))


def built(folder: Path, tier: str, examples: EncodedExamples | None = None, seed: int = 2, **more: Any) -> TeacherCache:
    teacher, tokenizer = tiny_model("llama", seed=seed), tiny_tokenizer("llama")
    options = {name: more.pop(name) for name in ("top_k", "temperatures", "dtype") if name in more}
    return build_cache(
        folder, lambda: teacher, examples or rows_of(), make_collator(teacher, tokenizer),
        tier=make_tier(tier, **options), **{"batch_size": 2, **more},
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*.safetensors"))}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_building, "SHARD_BATCHES", 2)


@pytest.mark.parametrize("tier", ALL)
def test_the_error_is_the_one_that_the_kept_tokens_give(tier: str, tmp_path: Path) -> None:
    cache, teacher = built(tmp_path, tier, top_k=50), tiny_model("llama", seed=2)
    states, targets = cache.sample()
    error = cache.meta["error"]
    head = head_weights(teacher)
    assert 100 < error["tokens"] == len(states) <= 256
    assert measure(cache.tier, states, targets, head, cache.learnt) == pytest.approx(error, rel=1e-6)
    # By definition, of what is read back for a student that is the teacher at temperature 1 / 0.7.
    logits = (states @ teacher.lm_head.weight.T).double().detach()
    p = torch.softmax(logits, -1)
    packed = cache.tier.pack(states, targets, head, cache.learnt)
    read, decoder = cache.tier.unpack(packed, targets.tolist(), cache.learnt), cache.head()
    if isinstance(decoder, OutcomeHead):
        ids, log_p = decoder.outcomes(read, 1.0)
        shape = torch.softmax(0.7 * logits, -1).scatter(-1, ids, 0.0)
        kept_p = shape / shape.sum(-1, keepdim=True) * log_p[:, -1:].double().exp()
        kept_p = kept_p.scatter(-1, ids, log_p[:, :-1].double().exp())
    else:
        kept_p = torch.softmax(decoder.logits(read).double(), -1)
    kl = (p * (p / kept_p).log()).sum(-1)
    assert error["mean_kl"] == pytest.approx(float(kl.mean()), rel=0.02, abs=1e-8)
    assert error["p99_kl"] == pytest.approx(float(kl.quantile(0.99)), rel=0.02, abs=1e-7)
    assert error["mean_tv"] == pytest.approx(float((p - kept_p).abs().sum(-1).mean() / 2), rel=0.02, abs=1e-5)
    assert error["flips"] == pytest.approx(float((p.argmax(-1) != kept_p.argmax(-1)).double().mean()), abs=0.01)


def test_tiers_in_the_order_of_their_errors(tmp_path: Path) -> None:
    names = ["exact", "int8", "topk", "likelihood"]
    caches = [built(tmp_path / name, name, top_k=50) for name in names]
    errors = [cache.meta["error"]["mean_kl"] for cache in caches]
    assert errors == sorted(errors) and errors[0] < 1e-7
    sizes = [cache.tier.token_bytes(32, 400) for cache in caches]
    assert sizes == [64, 34, 206, 4]


@pytest.mark.parametrize("tier", ALL)
def test_a_tier_above_the_limit_is_refused_before_the_cache_is_made(tier: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"cache\.tier={tier} is .* nats.*cache\.max_kl is 1e-12.*cache\.max_kl=(\S+)\."
                       ) as caught:  # fmt: skip
        built(tmp_path, tier, max_kl=1e-12)
    assert list(tmp_path.glob("shard-*")) == []
    limit = float(str(caught.value).split("cache.max_kl=")[-1].rstrip("."))
    assert built(tmp_path, tier, max_kl=limit).holds(rows_of())
    with pytest.raises(UserError, match="nats from the teacher"):
        built(tmp_path, tier, max_kl=1e-12)


@pytest.mark.parametrize("tier", ["int8", "topk", "likelihood"])
def test_a_killed_build_ends_in_the_same_bytes(tier: str, tmp_path: Path) -> None:
    built(tmp_path / "whole", tier)
    with cache_killed_after(3):
        built(tmp_path / "killed", tier)
    built(tmp_path / "killed", tier)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") and len(contents(tmp_path / "whole")) == 7


@pytest.mark.parametrize("victim", ["shard", "head.safetensors", "meta.json"])
@pytest.mark.parametrize("tier", in_turn(ALL, "int8"))
def test_damage_is_noticed_and_mended(tier: str, victim: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built(tmp_path, tier)
    before = contents(tmp_path)
    path = sorted(tmp_path.glob("shard-*.safetensors"))[1] if victim == "shard" else tmp_path / victim
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(bytes(content))
    cache = built(tmp_path, tier)
    assert "is damaged and will be built again" in caplog.text
    assert contents(tmp_path) == before and cache.verify() == [] and cache.holds(rows_of())


def test_shards_that_were_levelled_otherwise_are_made_again(tmp_path: Path) -> None:
    """Two runs that share a folder may both find it empty: the one that writes its levels last decides."""
    first, second = rows_of(9), encoded(30, tiny_tokenizer("llama"), seed=5)
    built(tmp_path, "int8", first)
    built(tmp_path / "apart", "int8", second)
    for name in ("meta.json", "head.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "apart" / name).read_bytes())
    meta = (tmp_path / "meta.json").read_text().replace('"apart"', f'"{tmp_path.name}"')
    content = read_sealed(tmp_path / "apart" / "meta.json")
    assert meta
    describe(tmp_path / "meta.json", {name: value for name, value in content.items() if name != "cache"})
    cache = TeacherCache(tmp_path)
    assert not cache.holds(first)
    cache = built(tmp_path, "int8", first)
    row = first[0]
    exact = built(tmp_path / "exact", "exact", first, dtype="float32").hidden(row["prompt_ids"], row["response_ids"])
    assert float((cache.hidden(row["prompt_ids"], row["response_ids"]) - exact).abs().max()) < 0.1


@pytest.mark.parametrize("tier", ALL)
def test_losses_of_the_text_are_the_teachers(tier: str, tmp_path: Path) -> None:
    examples, teacher = rows_of(5), tiny_model("llama", seed=2)
    cache = built(tmp_path, tier, examples, dtype="float32")
    for row in examples:
        tokens = [*row["prompt_ids"], *row["response_ids"]]
        with torch.no_grad():
            log_p = torch.log_softmax(teacher(torch.tensor([tokens])).logits[0], -1)
        ((start, end),) = learnt_spans(row)
        expected = -torch.stack([log_p[place - 1, tokens[place]] for place in range(start, end)])
        found = cache.losses(cache.head(), row["prompt_ids"], row["response_ids"])
        torch.testing.assert_close(found, expected, rtol=0, atol=0.1 if tier == "int8" else 1e-4)


def test_tiers_and_their_options_lie_apart(tmp_path: Path) -> None:
    kinds = [("exact", {"dtype": "float32"}), ("exact", {"dtype": "float16"}), ("int8", {}), ("likelihood", {}),
             ("topk", {}), ("topk", {"top_k": 9}), ("topk", {"temperatures": [2.0]})]  # fmt: skip
    places = {cache_folder(tmp_path, "teacher", make_tier(name, **options).identity) for name, options in kinds}
    assert len(places) == len(kinds)
    # Those of before there were tiers are found again where they are of the same precision.
    assert cache_folder(tmp_path, "teacher", make_tier("exact", dtype="float32").identity) == cache_folder(
        tmp_path, "teacher", "float32"
    )
    built(tmp_path / "one", "int8")
    with pytest.raises(UserError, match="holds a teacher cache of the kind"):
        built(tmp_path / "one", "topk", encoded(4, tiny_tokenizer("llama"), seed=9))


# ------------------------------------------------------------------------------------ filled from lists


def listing(teacher: Any, count: int, asked: list[int]) -> Any:
    """A stand-in for a server: the likeliest tokens of each position, and the token itself."""

    def ask(rows: list[dict[str, list[int]]]) -> list[list[list[tuple[int, float]]]]:
        answers = []
        for row in rows:
            asked.append(len(row["response_ids"]))
            tokens = [*row["prompt_ids"], *row["response_ids"]]
            with torch.no_grad():
                log_p = torch.log_softmax(teacher(torch.tensor([tokens])).logits[0], -1)
            ((start, end),) = learnt_spans(row)
            places = [(log_p[place - 1], tokens[place]) for place in range(start, end)]
            answers.append([_best(values, own, count) for values, own in places])
        return answers

    return ask


def _best(values: Tensor, own: int, count: int) -> list[tuple[int, float]]:
    ids = {own, *values.topk(count).indices.tolist()}
    return [(token, float(values[token])) for token in ids]


@pytest.mark.parametrize("tier", ["topk", "likelihood"])
def test_what_a_server_lists_is_what_the_teacher_says(tier: str, tmp_path: Path) -> None:
    """Filled from lists and built from the teacher, a cache says the same; nothing is asked for twice."""
    teacher, examples, made = tiny_model("llama", seed=2), rows_of(), make_tier(tier, top_k=5)
    local = built(tmp_path / "local", tier, top_k=5)
    asked: list[int] = []
    ask = listing(teacher, 5, asked)
    with cache_killed_after(2):
        fill_cache(tmp_path / "served", made, examples, ask, width=400, batch_size=2)
    assert len(asked) == 12
    cache = fill_cache(tmp_path / "served", made, examples, ask, width=400, batch_size=2)
    assert len(asked) == 12 + 21 - 8 and cache.meta["error"] is None and cache.verify() == []
    again = fill_cache(tmp_path / "served", made, examples, ask, width=400, batch_size=2)
    assert len(asked) == 25 and again.holds(examples)
    for row in examples:
        tokens = (row["prompt_ids"], row["response_ids"])
        (ids, mine), (theirs_ids, theirs) = (each.head().outcomes(each.hidden(*tokens), 1.0) for each in (cache, local))
        assert torch.equal(ids.sort(-1).values, theirs_ids.sort(-1).values)
        torch.testing.assert_close(mine.sort(-1).values, theirs.sort(-1).values, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(cache.losses(cache.head(), *tokens), local.losses(local.head(), *tokens))


def test_lists_that_lack_what_is_needed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"made of hidden states.*topk or likelihood"):
        make_tier("int8").pack_listed([[(1, -1.0)]], [1], V)
    with pytest.raises(UserError, match=r"position 0 .* no log-probability of its own token 3"):
        make_tier("likelihood").pack_listed([[(1, -1.0)]], [3], V)
    with pytest.raises(UserError, match="temperature 1 alone"):
        make_tier("topk", temperatures=[2.0]).pack_listed([[(1, -1.0)]], [3], V)
    with pytest.raises(UserError, match="no log-probability of any token below 40"):
        make_tier("topk").pack_listed([[(V + 1, -1.0)]], [3], V)
    with pytest.raises(RunError, match=r"has told of .* tokens"):
        fill_cache(tmp_path, make_tier("topk"), rows_of(2), lambda rows: [[] for _ in rows], width=400)


def test_what_a_tier_cannot_serve() -> None:
    served: Sequence[tuple[str, str, float]] = [
        ("exact", "rkl", 3.0), ("int8", "srkl", 0.5), ("topk", "jsd", 1.0), ("likelihood", "fkl", 1.0)]  # fmt: skip
    for name, objective, temperature in served:
        assert make_tier(name).problem(objective, temperature) == ""
    assert "fkl alone" in make_tier("likelihood").problem("srkl", 1.0)
    assert "temperature 1 alone" in make_tier("likelihood").problem("fkl", 2.0)
    assert make_tier("topk", temperatures=[2.0]).problem("fkl", 2.0) == ""
    for objective, schedule in (("akl", None), ("entropy_aware", None), ("fkl", InterpolatedTeacher())):
        for name in ALL:
            problem = make_tier(name).problem(objective, 1.0, schedule)
            assert ("whole distribution" in problem) == (name in ("topk", "likelihood"))
    assert "not for 3" in make_tier("topk", temperatures=[2.0]).problem("fkl", 3.0)


def test_the_recipe_knows_the_tiers_without_torch() -> None:
    code = (
        "import sys; from srd.training.settings import CacheConfig; CacheConfig(tier='topk'); "
        "from srd.training.tiers.base import TIERS; assert TIERS.names() == ['exact', 'int8', 'likelihood', 'topk'];"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert TIERS.names() == list(ALL)
