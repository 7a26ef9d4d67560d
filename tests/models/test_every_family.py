"""Every kind of family: what is done in batches is what reading each text alone gives.

Prompts of different length share batches, rows stop early, references are scored in between, a teacher's cache is
built, and a loss goes back through it all. The oracle is the model's plain forward pass over one text at a time: no
batch, no padding, no state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
)

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.data.batching import Collator, EncodedExamples
from srd.models.generation import Decoding, decode_batch
from srd.models.head import head_is_enough, head_weights, logit_rule, own_logits, response_hidden, response_logits
from srd.models.loading.architecture import auto_class
from srd.models.reading import Abilities, abilities
from srd.models.tokenizers.tokens import decoder_prefix
from srd.run.flow import advance
from srd.run.outline.sizes import size_of
from srd.run.parts.teacher_caches import collator as collator_of
from srd.training.cache.building import build_cache
from srd.training.divergences.base import DIVERGENCES
from srd.training.loss.response_loss import head_loss, logits_loss
from srd.training.loss.settings import LossSettings
from tests.runs import TinyRun, in_turn, logged
from tests.tiny import DECODER_ONLY, ENCODER_DECODER, tiny_tokenizer
from tests.tiny import FAMILIES as OWN_KIND

MakeRun = Callable[..., TinyRun]

WIDTH = 64
# What makes a model tiny, by whatever name a family calls it.
TINY: dict[str, Any] = {
    "vocab_size": WIDTH, "hidden_size": 32, "d_model": 32, "n_embd": 32, "num_hidden_layers": 2, "num_layers": 2,
    "n_layer": 2, "encoder_layers": 2, "decoder_layers": 2, "num_decoder_layers": 2, "num_attention_heads": 4,
    "num_heads": 4, "n_head": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "d_ff": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "head_dim": 8, "d_kv": 8,
    "max_position_embeddings": 128, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16,
    "mamba_dt_rank": 4, "state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8,
    "n_groups": 1, "mamba_chunk_size": 8, "chunk_size": 8, "src_vocab_size": WIDTH, "tgt_vocab_size": WIDTH,
    "decoder_vocab_size": WIDTH, "langs": ["en", "de"],
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "lru_width": 32, "attention_window_size": 16, "sliding_window": 16,
    "attention_hidden_size": 32, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
}  # fmt: skip
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
ROUTED = {"output_router_logits": True}
CONV = {"layer_types": ["conv", "full_attention"]}
STATELESS = Abilities(None, padding=False)
CACHED = Abilities("past_key_values")
RECURRENT = Abilities("cache_params")
# Family: what it needs beside, and what was measured when this was written. Less is slower and as right.
FAMILIES: dict[str, tuple[dict[str, Any], Abilities]] = {
    # plain attention, and what families do to their logits
    "llama": ({}, CACHED), "qwen3_moe": (ROUTED, CACHED), "mixtral": (ROUTED, CACHED),
    "bloom": ({}, CACHED), "mistral": ({}, CACHED),
    "gemma2": ({"final_logit_softcapping": 3.0}, CACHED), "gemma3_text": ({}, CACHED),
    "cohere": ({"logit_scale": 0.3}, CACHED), "granite": ({"logits_scaling": 2.5}, CACHED),
    "hyperclovax": ({"logits_scaling": 2.5}, CACHED), "nanochat": ({}, CACHED),
    "gpt_neo": ({"attention_types": [[["global", "local"], 1]], "window_size": 8}, CACHED),
    "openai-gpt": ({}, Abilities(None)),
    # hybrids of attention and a recurrent state
    "qwen3_next": (LINEAR, CACHED), "qwen3_5_text": (LINEAR, CACHED), "olmo_hybrid": (LINEAR, CACHED),
    "lfm2": ({**CONV, "full_attn_idxs": [1]}, CACHED),
    "falcon_h1": ({"mamba_d_ssm": 64, "lm_head_multiplier": 0.3}, CACHED),
    "granitemoehybrid": ({"layer_types": ["mamba", "attention"], **ROUTED}, CACHED),
    "jamba": ({"attn_layer_period": 2, "attn_layer_offset": 1, **ROUTED}, CACHED),
    "bamba": ({"attn_layer_indices": [1]}, CACHED),
    "zamba2": ({"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 4, "num_key_value_heads": 4}, CACHED),
    "nemotron_h": ({"layers_block_type": ["mamba", "attention"]}, CACHED),
    "minimax": (LINEAR, Abilities("past_key_values", padding=False, leaving=False)),
    # recurrent only
    "mamba": ({}, RECURRENT), "mamba2": ({"head_dim": 16}, RECURRENT), "rwkv": ({"rescale_every": 1}, STATELESS),
    "recurrent_gemma": ({"block_types": ["recurrent", "attention"], "logits_soft_cap": 3.0}, STATELESS),
    "xlstm": ({"output_logit_soft_cap": 3.0}, STATELESS),
    # encoder-decoders
    "t5": ({"decoder_start_token_id": 0}, CACHED), "bart": ({"forced_bos_token_id": 5}, CACHED),
    "mbart": ({"forced_bos_token_id": 7}, CACHED), "m2m_100": ({}, CACHED),
    "marian": ({"decoder_start_token_id": 0}, CACHED),
    "pegasus": ({}, CACHED), "fsmt": ({}, CACHED),
}  # fmt: skip
OWN_LOGITS = {"fsmt"}  # whose head is no module that could be watched
# One for each way of reading on, of attending and of scaling logits; make test-all takes every family.
ONE_OF_A_KIND = (
    "llama", "bloom", "gemma2", "cohere", "gpt_neo", "openai-gpt", "qwen3_next", "lfm2", "falcon_h1", "jamba",
    "minimax", "mamba", "rwkv", "t5", "bart", "fsmt",
)  # fmt: skip
MASKED = ("bert", "roberta", "electra", "camembert", "xlm-roberta", "roformer", "xlnet")


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    kind = CONFIG_MAPPING[family]
    known = {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    own = FAMILIES[family][0] if family in FAMILIES else {}
    return kind(**{**{name: value for name, value in TINY.items() if name in known}, **own, **changes})


def tiny_of(family: str, seed: int = 1, **changes: Any) -> Any:
    config = tiny_config(family, **changes)
    known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = known[type(config)](config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.3)
    return model.eval()


PROMPTS = [[5, 9, 33], [40, 41, 42, 43, 44, 45, 46], [7]]
REFERENCES = [[11, 12, 2], [2], [13, 14, 15, 16, 2]]
ROWS = {"id": list("abc"), "prompt_ids": PROMPTS, "response_ids": REFERENCES}
LONGEST = 4
# Both parts of the loss, so that what comes of the teacher's cache counts, and so does the reference.
LOSS = LossSettings(objective="fkl", weight=0.5)


def alone(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Logits behind the prompt and behind each token of the answer ``[1 + len(answer), V]``."""
    if model.config.is_encoder_decoder:
        start = decoder_prefix(model)
        ids = torch.tensor([start + answer])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=ids, use_cache=False).logits
        return logits[0, len(start) - 1 :].float()
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits
    return logits[0, len(prompt) - 1 :].float()


def is_greedy(model: Any, prompt: list[int], answer: list[int], stop: int) -> bool:
    """Whether an answer is what the model says itself, ended by the first stop token or by its length."""
    best = alone(model, prompt, answer).argmax(-1)[:-1].tolist()
    ended = stop in answer[:1] or len(answer) == LONGEST or answer[-1] == stop
    return answer == best and ended and stop not in answer[:-1]


def loss_with_teacher(student: Any, teacher: Any, folder: Path) -> Tensor:
    """The training's loss of all rows in one batch, with what the teacher's cache keeps where one can be built."""
    collator = Collator(0, decoder_prefix(student) if student.config.is_encoder_decoder else None)
    examples = EncodedExamples(ROWS)
    batch = collator([examples[i] for i in range(len(PROMPTS))])
    targets, one = batch["targets"], torch.tensor(1)
    if head_is_enough(teacher):
        cache = build_cache(folder, lambda: teacher, examples, collator, dtype="float32", batch_size=2)
        hidden = torch.cat([cache.hidden(*pair) for pair in zip(PROMPTS, REFERENCES, strict=True)])
        taught = {"teacher_hidden": hidden, "teacher_head": cache.head()}
        return head_loss(response_hidden(student, batch), head_weights(student), targets, LOSS, one, **taught)[0]
    with pytest.raises(UserError, match=r"no cache can keep them. Set cache.enabled=false"):
        build_cache(folder, lambda: teacher, examples, collator, dtype="float32")
    taught = {"teacher_hidden": response_logits(teacher, batch).detach(), "teacher_head": own_logits(teacher)}
    return logits_loss(response_logits(student, batch), WIDTH, targets, LOSS, one, **taught)[0]


@pytest.mark.parametrize("family", in_turn(FAMILIES, *ONE_OF_A_KIND))
def test_what_is_done_in_batches_is_what_each_text_alone_gives(family: str, tmp_path: Path) -> None:
    """Answers, scores, the loss with its gradient, and the teacher's cache."""
    student, teacher = tiny_of(family), tiny_of(family, seed=2)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    pairs = list(zip(PROMPTS, REFERENCES, strict=True))
    assert logit_rule(student).head == head_is_enough(teacher) == (family not in OWN_LOGITS)
    stop = int(alone(student, PROMPTS[0], [])[-1].argmax())  # one row at least leaves early
    answers, scores = decode_batch(student, PROMPTS, ROWS["id"], Decoding(LONGEST), [stop], 0, references=REFERENCES)
    assert all(is_greedy(student, *pair, stop) for pair in zip(PROMPTS, answers, strict=True))
    assert abilities(student) == FAMILIES[family][1]

    own = [alone(student, *pair)[:-1].log_softmax(-1) for pair in pairs]
    losses = [-one[range(len(text)), text] for one, text in zip(own, REFERENCES, strict=True)]
    assert [score.mean for score in scores] == pytest.approx([loss.mean().item() for loss in losses], abs=1e-5)
    assert [score.last for score in scores] == pytest.approx([loss[-1].item() for loss in losses], abs=1e-5)

    loss = loss_with_teacher(student, teacher, tmp_path)
    theirs = torch.cat([alone(teacher, *pair)[:-1] for pair in pairs]).log_softmax(-1).detach()
    gap = nn.functional.kl_div(torch.cat(own), theirs, reduction="sum", log_target=True)
    expected = (torch.cat(losses).sum() + gap) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    gradients, plain = (torch.autograd.grad(each, weights, allow_unused=True) for each in (loss, expected))
    largest = max(float(each.abs().max()) for each in plain if each is not None)
    for one, other in zip(gradients, plain, strict=True):
        assert (one is None) == (other is None)
        assert one is None or float((one - other).abs().max()) < 1e-4 * largest
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())


def test_the_rules_that_are_found() -> None:
    """A cap or scale is taken from the configuration only where it fits, whatever it is called there."""
    found = {f: logit_rule(tiny_of(f)) for f in ("hyperclovax", "granite", "cohere", "falcon_h1", "recurrent_gemma")}
    numbers = {family: (rule.scale, rule.softcap) for family, rule in found.items()}
    assert numbers == {
        "hyperclovax": (2.5, None), "granite": (1 / 2.5, None), "cohere": (0.3, None), "falcon_h1": (0.3, None),
        "recurrent_gemma": (1.0, 3.0),
    }  # fmt: skip


@pytest.mark.parametrize("family", MASKED)
def test_masked_language_models_are_refused_by_their_configuration(family: str) -> None:
    config = tiny_config(family)
    with pytest.raises(UserError, match="predicts masked tokens from both sides"):
        auto_class(config)


def test_a_model_that_sees_what_follows_is_noticed_without_its_name() -> None:
    model = tiny_of("bert")
    with pytest.raises(UserError, match="what it predicts depends on the tokens that follow"):
        logit_rule(model)


def test_a_family_that_cannot_be_decoded_is_refused() -> None:
    """Logits that depend on how much is read at once: nothing that is measured agrees."""
    model = tiny_of("llama")
    plain = model.forward

    def forward(input_ids: Tensor, **arguments: Any) -> Any:
        output = plain(input_ids=input_ids, **arguments)
        output.logits = output.logits + 0.1 * input_ids.shape[1] * torch.linspace(0, 1, 64)
        return output

    model.forward = forward
    with pytest.raises(UserError, match=r"cannot be decoded here.*another family"):
        decode_batch(model, PROMPTS, ROWS["id"], Decoding(3), [2], 0)


# -------------------------------------------------------------------------------------------- whole runs


def finite_losses(run_dir: Path, variant: str) -> list[float]:
    losses = [row["loss"] for row in logged(run_dir) if row["arm"] == variant and "loss" in row]
    assert losses and all(loss == loss and loss < 1e4 for loss in losses)
    return losses


def run_of(make_tiny_run: MakeRun, family: str) -> TinyRun:
    """A tiny run of any family of the table; those of `tests.tiny` have a tokenizer of their own kind."""
    if family in OWN_KIND:
        return make_tiny_run(family)
    tiny, tokenizer = make_tiny_run("qwen2"), tiny_tokenizer("qwen2")
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for seed, folder in enumerate((tiny.teacher, tiny.student)):
        tiny_of(family, seed, vocab_size=len(tokenizer), **ids).save_pretrained(folder)
    return tiny


@pytest.mark.parametrize("family", in_turn((*OWN_KIND, "lfm2", "mamba", "falcon_h1"), "t5"))
def test_whole_flow_with_kd_and_srd(make_tiny_run: MakeRun, family: str) -> None:
    tiny, drop = run_of(make_tiny_run, family), 1 if family in OWN_KIND else 0  # of two layers
    tiny.set(baselines={"kd": {"curriculum": None}}, training__objective="srkl", training__curriculum={"stages": 1})
    if drop:
        tiny.set(student={"drop_layers": drop})
    run = tiny.set(data__train_limit=16).advance()
    teacher, student = (read_json(path / "config.json") for path in (tiny.teacher, run.folder / "student"))
    names = [name for name in ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers") if name in teacher]
    assert names and all(student[name] == teacher[name] - drop for name in names)
    assert any((run.folder / "student").glob("*.safetensors"))
    metrics = read_json(run.folder / "evaluation/metrics.json")
    assert set(metrics) == {"teacher", "student", "kd", "srd"}
    finite_losses(run.folder, "kd")
    finite_losses(run.folder, "srd")
    auto = AutoModelForSeq2SeqLM if family in ENCODER_DECODER else AutoModelForCausalLM
    model, report = auto.from_pretrained(run.folder / "student", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "student")
    prompt = tokenizer("Name the whale.", return_tensors="pt")
    answer = model.generate(
        input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=4, do_sample=False
    )
    assert answer.shape[0] == 1 and answer.numel() > 1


def test_each_family_has_a_size_and_without_attention_no_keys() -> None:
    keys = {family: size_of(tiny_config(family)).keys for family in {*FAMILIES, "lfm2", "mamba", "falcon_h1"}}
    assert {family for family, width in keys.items() if not width} == {"mamba", "mamba2", "rwkv", "xlstm"}


@pytest.mark.slow
def test_t5_with_every_divergence(make_tiny_run: MakeRun) -> None:
    objectives = ("fkl", "rkl", "jsd", "tvd", "sfkl", "srkl")
    assert set(objectives) <= set(DIVERGENCES.names())
    tiny = make_tiny_run("t5")
    tiny.set(training__curriculum=None, baselines={name: {"objective": name} for name in objectives})
    run = tiny.set(data__train_limit=16).train()
    before = load_file(tiny.student / "model.safetensors")
    after = {name: load_file(run.folder / f"baselines/{name}/student/model.safetensors") for name in objectives}
    for name, trained in after.items():
        assert any(not torch.equal(before[weight], trained[weight]) for weight in before), name
        finite_losses(run.folder, name)
    for one, other in itertools.combinations(after.values(), 2):
        assert any(not torch.equal(one[weight], other[weight]) for weight in before)


@pytest.mark.parametrize(
    ("teacher_width", "student_width"),
    [(432, 400), *(pytest.param(width, 432, marks=pytest.mark.slow) for width in (400, 416))],
)
def test_widths_that_differ_by_padding_rows(make_tiny_run: MakeRun, teacher_width: int, student_width: int) -> None:
    tiny = make_tiny_run("qwen2", teacher={"vocab_size": teacher_width}, student={"vocab_size": student_width})
    tiny.set(training__curriculum={"stages": 1}, training__weight_decay=0, data__train_limit=16)
    run = tiny.train()
    name = "model.embed_tokens.weight"
    before = load_file(tiny.student / "model.safetensors")[name]
    after = load_file(run.folder / "student/model.safetensors")[name]
    assert after.shape == before.shape == (student_width, 32)
    shared = min(teacher_width, student_width)
    assert torch.equal(before[shared:], after[shared:])
    assert not torch.equal(before[:shared], after[:shared])


def test_padding_rows_of_the_teacher_send_nothing(make_tiny_run: MakeRun) -> None:
    """The same teacher with 32 further rows, full of large values, makes the same student."""
    students = []
    for width in (400, 432):
        tiny = make_tiny_run("qwen2", teacher={"vocab_size": 400})
        if width > 400:
            model = AutoModelForCausalLM.from_pretrained(tiny.teacher)
            model.resize_token_embeddings(width, mean_resizing=False)
            with torch.no_grad():
                model.get_input_embeddings().weight[400:] = 100.0
            model.save_pretrained(tiny.teacher)
        tiny.set(training__curriculum=None, data__train_limit=16)
        students.append((tiny.train().folder / "student/model.safetensors").read_bytes())
    assert students[0] == students[1]


@pytest.mark.parametrize("family", DECODER_ONLY)
def test_pad_equal_to_end_of_sequence_is_still_learnt(make_tiny_run: MakeRun, family: str) -> None:
    """Every reference ends with the end of sequence and that token counts, whatever the pad token is."""
    tiny = make_tiny_run(family)
    run = tiny.open()
    try:
        advance(run, "examples")
        examples, collate = run.encoded("train"), collator_of(run)
        batch = collate([examples[0], examples[1]])
    finally:
        run.close()
    end = run.tokenizer.eos_token_id
    assert [ids[-1] for ids in examples.responses[:2]] == [end, end]
    assert (batch["targets"] == end).sum() == 2
    assert len(batch["index"]) == len(batch["targets"]) == sum(len(ids) for ids in examples.responses[:2])
