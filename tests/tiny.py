"""Two-layer random models of every family, with a tiny tokenizer, built in memory in well under a second.

They have the shape of the real ones where it matters: which end-of-sequence and padding tokens there are,
whether a BOS is put in front, how the output head is tied, rescaled or soft-capped, encoder-decoder or
decoder-only. Dropout is off everywhere, so that two passes agree.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

DECODER_ONLY = ("gpt2", "opt", "llama", "qwen2", "gemma2")
ENCODER_DECODER = ("t5", "mt5")
FAMILIES = DECODER_ONLY + ENCODER_DECODER

TOKENIZER_SIZE = 400
MAX_POSITIONS = 1024

# What the byte-pair merges are learnt from. Bytes make every other text encodable too.
CORPUS = """
Below is an instruction that describes a task, paired with an input that gives more context.
Write a response that completes the request properly. ### Instruction: ### Input: ### Response:
What does the function return? It returns the number of items in the list that are equal to the value.
Name three animals that live in the sea. The whale, the dolphin and the octopus all live in the sea.
Why is the sky blue? Because small particles of the air scatter blue light more strongly than red light.
How many apples are there? There are 12 apples in the first box and 30 apples in the second, so 42 together.
Question: Answer: user assistant system def return for if else import True False None self
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% "
    "endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Special tokens in id order, the role of each, the text put before and after every sequence, the chat
# template.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "tokens": ["<|endoftext|>"],
        "bos": "<|endoftext|>",
        "eos": "<|endoftext|>",
        "pad": "<|endoftext|>",
    },
    "opt": {
        "tokens": ["<s>", "<pad>", "</s>", "<unk>"],
        "bos": "</s>",
        "eos": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "template": "</s> $A",
    },
    "llama": {
        "tokens": ["<unk>", "<s>", "</s>"],
        "bos": "<s>",
        "eos": "</s>",
        "pad": None,
        "unk": "<unk>",
        "template": "<s> $A",
    },
    "qwen2": {
        "tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "eos": "<|im_end|>",
        "pad": "<|endoftext|>",
        "chat": CHAT_TEMPLATE,
    },
    "t5": {
        "tokens": ["<pad>", "</s>", "<unk>"],
        "eos": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "template": "$A </s>",
    },
    "gemma2": {
        "tokens": ["<pad>", "<eos>", "<bos>", "<unk>"],
        "bos": "<bos>",
        "eos": "<eos>",
        "pad": "<pad>",
        "unk": "<unk>",
        "template": "<bos> $A",
    },
}
TOKENIZERS["mt5"] = TOKENIZERS["t5"]


@cache
def _trained(kind: str) -> str:
    """Train the byte-pair merges once per process; the JSON of the tokenizer is what is kept."""
    plan = TOKENIZERS[kind]
    tokenizer = Tokenizer(models.BPE())
    splits = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]+|\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=plan["tokens"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    if "template" in plan:
        ids = [(token, tokenizer.token_to_id(token)) for token in plan["tokens"]]
        tokenizer.post_processor = processors.TemplateProcessing(single=plan["template"], special_tokens=ids)
    return str(tokenizer.to_str())


def tiny_tokenizer(kind: str = "gpt2") -> PreTrainedTokenizerFast:
    """Return a new byte-level BPE tokenizer of 400 tokens that behaves as the family ``kind`` does.

    gpt2: pad = eos, no BOS added. llama: BOS added, no pad token at all. opt: ``</s>`` in front, own pad.
    qwen2: chat template, eos ``<|im_end|>``, own pad. t5 and mt5: ``</s>`` at the end, own pad. gemma2: BOS
        added.
    """
    plan = TOKENIZERS[kind]
    special = {f"{role}_token": plan.get(role) for role in ("bos", "eos", "pad", "unk")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(kind)),
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **special,
    )
    if "chat" in plan:
        tokenizer.chat_template = plan["chat"]
    return tokenizer


@cache
def _sentencepiece(kind: str, dummy_prefix: bool) -> str:
    """Train pieces with ``▁`` for spaces; the 256 bytes stand in for characters that have no piece."""
    trained = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    prepend = "first" if dummy_prefix else "never"
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=True)
    options: dict[str, Any] = {"vocab_size": TOKENIZER_SIZE, "show_progress": False}
    trainer = trainers.BpeTrainer(**options) if kind == "bpe" else trainers.UnigramTrainer(**options)
    trained.train_from_iterator(CORPUS.splitlines(), trainer)
    plan = json.loads(trained.to_str())
    extra = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = plan["model"]
    if kind == "bpe":
        pieces = [*extra, *sorted(model["vocab"], key=model["vocab"].get)]
        model.update(vocab={piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>", fuse_unk=True)
    else:
        model.update(vocab=[*([piece, -20.0] for piece in extra), *model["vocab"]], unk_id=0)
    model["byte_fallback"] = True
    plan["decoder"] = json.loads(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ).__getstate__()
    )
    return json.dumps(plan)


def sentencepiece_tokenizer(kind: str = "bpe", *, dummy_prefix: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer as SentencePiece makes them: ``▁`` for a space, byte fallback, a space before every text.

    Args:
        kind: ``bpe`` (Llama 2) or ``unigram``.
        dummy_prefix: Whether it puts that space (Gemma does not).
    """
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_sentencepiece(kind, dummy_prefix)),
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **special,
    )


def chat_tokenizer(tokens: Iterable[str], template: str, *, special: bool = True) -> Any:
    """A tokenizer with a chat template, and the tokens that its frame takes; end of sequence is none of them."""
    tokenizer = tiny_tokenizer("gemma2")
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens], special)
    tokenizer.chat_template = template
    return tokenizer


def tiny_config(family: str, *, vocab_size: int | None = None, layers: int = 2, hidden: int = 32) -> PreTrainedConfig:
    """Configuration of a tiny model; ``vocab_size`` is the width of the head (400 = no padding rows)."""
    tokenizer = tiny_tokenizer(family)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    }
    width = vocab_size or len(tokenizer)
    if family == "gpt2":
        return GPT2Config(
            vocab_size=width, n_embd=hidden, n_layer=layers, n_head=4, n_positions=MAX_POSITIONS,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2, **ids,
        )  # fmt: skip
    if family == "opt":
        return OPTConfig(
            vocab_size=width, hidden_size=hidden, word_embed_proj_dim=hidden, num_hidden_layers=layers,
            num_attention_heads=4, ffn_dim=2 * hidden, max_position_embeddings=MAX_POSITIONS, dropout=0.0,
            init_std=0.2, **ids,
        )  # fmt: skip
    if family in ENCODER_DECODER:
        return _t5_config(family, width, layers, hidden, ids)
    common: dict[str, Any] = {
        "vocab_size": width, "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.2, **ids,
    }  # fmt: skip
    if family == "llama":
        return LlamaConfig(**common, tie_word_embeddings=False)
    if family == "qwen2":
        return Qwen2Config(**common, tie_word_embeddings=True)
    if family == "gemma2":
        # A cap this low bends the logits visibly, so that a head without it cannot pass for the real one.
        return Gemma2Config(
            **common, head_dim=hidden // 4, query_pre_attn_scalar=hidden // 4, sliding_window=16,
            final_logit_softcapping=3.0, attn_logit_softcapping=50.0,
        )  # fmt: skip
    raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")


def _t5_config(family: str, width: int, layers: int, hidden: int, ids: dict[str, Any]) -> PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": width, "d_model": hidden, "d_kv": hidden // 4, "d_ff": 2 * hidden, "num_layers": layers,
        "num_decoder_layers": layers, "num_heads": 4, "dropout_rate": 0.0, "decoder_start_token_id": 0,
        "eos_token_id": ids["eos_token_id"], "pad_token_id": ids["pad_token_id"],
    }  # fmt: skip
    if family == "t5":
        return T5Config(**common)
    return MT5Config(**common, feed_forward_proj="gated-gelu")


MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "gpt2": GPT2LMHeadModel,
    "opt": OPTForCausalLM,
    "llama": LlamaForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "gemma2": Gemma2ForCausalLM,
    "t5": T5ForConditionalGeneration,
    "mt5": MT5ForConditionalGeneration,
}


def tiny_model(
    family: str, *, vocab_size: int | None = None, layers: int = 2, hidden: int = 32, seed: int = 0
) -> PreTrainedModel:
    """Return a random float32 model of ``family`` in eval mode; the same seed gives the same weights."""
    return copy.deepcopy(_made(family, vocab_size, layers, hidden, seed))


@torch.no_grad()
def brief(model: PreTrainedModel) -> PreTrainedModel:
    """The model with an end of sequence that it often likes best, so that answers of any length allowed are short."""
    model.get_output_embeddings().weight[model.config.eos_token_id] *= 8
    return model


@cache
def _made(family: str, vocab_size: int | None, layers: int, hidden: int, seed: int) -> PreTrainedModel:
    """A model to be copied, which takes half the time of making it."""
    config = tiny_config(family, vocab_size=vocab_size, layers=layers, hidden=hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = MODEL_CLASSES[family](config)
        if family == "t5":
            # Embeddings of scale 1 drown the random layers: the model would repeat its start token for ever.
            model.get_input_embeddings().weight.data.mul_(0.3)
        if family == "mt5":
            _untie_head(model)
    return model.eval()


def _untie_head(model: PreTrainedModel) -> None:
    """Give the head its own weights, as mT5 checkpoints have, though the configuration always says tied."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight) * 0.2)
    model.all_tied_weights_keys.pop("lm_head.weight")


def save_tiny(
    folder: Path | str,
    family: str,
    *,
    vocab_size: int | None = None,
    layers: int = 2,
    hidden: int = 32,
    seed: int = 0,
) -> Path:
    """Write a tiny model and its tokenizer to ``folder``, as ``from_pretrained`` reads them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _saved(family, vocab_size, layers, hidden, seed).items():
        (folder / name).write_bytes(content)
    return folder


@cache
def _saved(family: str, vocab_size: int | None, layers: int, hidden: int, seed: int) -> dict[str, bytes]:
    """The files of a model and its tokenizer, written once a process."""
    with tempfile.TemporaryDirectory() as folder:
        _made(family, vocab_size, layers, hidden, seed).save_pretrained(folder)
        tiny_tokenizer(family).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
