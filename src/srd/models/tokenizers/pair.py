"""Whether teacher and student have the same tokens, so that their distributions are compared id by id.

All checks read tokenizers and configurations only, so a pair that does not fit is refused before a weight is
loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from srd.base.errors import UserError
from srd.data.turns import turns_of
from srd.models.tokenizers.token_bytes import token_bytes

# Equal vocabularies with other merges or another treatment of spaces and digits still cut texts differently.
PROBE = "It's 12,345.67 km:\n\n\tdef naïve_sum(x):  return x+1  # Ünïcödé 你好 🙂"


def head_width(config: PreTrainedConfig) -> int:
    """Rows of the output head, padding rows included."""
    return int(config.get_text_config().vocab_size)


def kinds_differ(teacher_config: PreTrainedConfig, student_config: PreTrainedConfig) -> str:
    """Say where one is encoder-decoder and the other decoder-only; empty: they are of one kind."""
    kinds = ["encoder-decoder" if c.is_encoder_decoder else "decoder-only" for c in (teacher_config, student_config)]
    if kinds[0] == kinds[1]:
        return ""
    return (
        f"the teacher ({teacher_config.model_type}) is {kinds[0]} and the student ({student_config.model_type}) is "
        f"{kinds[1]}"
    )


def tokenizers_differ(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> str:
    """Say how two tokenizers differ, so that a teacher has to read texts in tokens of its own; empty: they do not.

    Every id that both know must be the same token, by its bytes, and texts must be cut alike. One vocabulary may go on
    where the other ends (tokens added to one of the two). The end-of-sequence token, a target of training, must agree.
    """
    if reason := _difference(teacher, student):
        return reason
    if teacher.eos_token_id != student.eos_token_id:
        return (
            f"the first ends its answers with {teacher.eos_token!r} (id {teacher.eos_token_id}), the second with "
            f"{student.eos_token!r} (id {student.eos_token_id})"
        )
    return ""


def _same_bytes(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> bool:
    """Whether tokens that are written differently are the same bytes, id by id, and control tokens look alike."""
    try:
        sides = token_bytes(teacher), token_bytes(student)
    except UserError:
        return False
    count = min(map(len, sides))
    control = [{token: look for token, look in side.control.items() if token < count} for side in sides]
    return sides[0].pieces[:count] == sides[1].pieces[:count] and control[0] == control[1]


def _difference(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> str:
    """Say how the two tokenizers differ; an empty string where they do not."""
    teacher_tokens = {index: token for token, index in teacher.get_vocab().items()}
    student_tokens = {index: token for token, index in student.get_vocab().items()}
    sizes = f"{len(teacher_tokens)} and {len(student_tokens)} tokens"
    for index in sorted(teacher_tokens.keys() & student_tokens.keys()):
        if teacher_tokens[index] != student_tokens[index]:
            if _same_bytes(teacher, student):
                break
            return (
                f"{sizes}, and id {index} is {teacher_tokens[index]!r} in the first, "
                f"{student_tokens[index]!r} in the second"
            )
    cuts = [tokenizer.encode(PROBE, add_special_tokens=False) for tokenizer in (teacher, student)]
    if cuts[0] != cuts[1]:
        place = next((i for i, (a, b) in enumerate(zip(*cuts, strict=False)) if a != b), min(map(len, cuts)))
        pieces = [
            tokenizer.decode(cut[place : place + 1]) for tokenizer, cut in zip((teacher, student), cuts, strict=True)
        ]
        return f"{sizes}, and they cut text differently ({pieces[0]!r} where the other has {pieces[1]!r})"
    return ""


def shared_vocabulary(
    teacher_config: PreTrainedConfig,
    student_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    name: str = "student",
) -> int:
    """Return V, the number of leading ids that both heads have, at which both distributions are compared.

    Heads of one family may differ in padding rows (Qwen2.5: 151936 and 152064), which no token id reaches. A student
    may have tokens that its teacher has not, and control tokens that it has not itself (a text model of Gemma 3 has no
    images), as long as no text has them: see `check_read`.

    Raises:
        UserError: the student's head is narrower than its tokenizer, so that some token of text has no logit.
    """
    width, tokens = head_width(student_config), token_count(tokenizer)
    if width < tokens and not _are_idle(tokenizer, width):
        raise UserError(
            f"the {name}'s output head has {width} rows, but the tokenizer has {tokens} tokens. It belongs "
            "to another model, or tokens were added to it without resizing the student's embeddings: "
            f"model.resize_token_embeddings({tokens}), and save it again."
        )
    return min(head_width(teacher_config), width)


def _are_idle(tokenizer: PreTrainedTokenizerBase, start: int) -> bool:
    """Whether all ids from one on are control tokens of which none begins, ends or pads a text."""
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, *turns_of(tokenizer).stops}
    known = tokenizer.added_tokens_decoder
    return all(i in known and known[i].special and i not in used for i in tokenizer.get_vocab().values() if i >= start)


def token_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids that a tokenizer may give, from 0 on; more than it has tokens where there are gaps between them."""
    return _token_count(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _token_count(tokenizer: PreTrainedTokenizerBase, tokens: int) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def check_read(
    name: str, prompt: Sequence[int], response: Sequence[int], width: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse an example with a token that a model has not: it could be neither read nor taught.

    Raises:
        UserError: with the token and where it is.
    """
    for part, ids in (("prompt", prompt), ("response", response)):
        token = next((token for token in ids if token >= width), None)
        if token is not None:
            raise UserError(
                f"example '{name}': its {part} has {tokenizer.convert_ids_to_tokens(token)!r} (id {token}), a token of "
                f"the student's tokenizer that a model does not have: its vocabulary ends at {width}. Leave the token "
                "out of the data or of the chat template, or give models that have it."
            )
