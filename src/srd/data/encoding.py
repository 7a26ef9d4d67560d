"""From examples to token sequences: the prompt within its frame, the response with its end of sequence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from srd.artifacts import fingerprint
from srd.data.templates import Segment, Template, get_template
from srd.errors import UserError

logger = logging.getLogger(__name__)


class Encoder:
    """Turns examples into prompt and response token ids, the same way for training, reflection and evaluation.

    Args:
        tokenizer: Shared by teacher and student.
        template: Puts the prompt into its frame.
        max_length: Longest prompt and response together, in tokens.
        max_prompt_length: Longest prompt. A longer one loses content; the frame around the answer stays.
        encoder_decoder: The prompt goes to an encoder, the response to a decoder, each with its own length.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        *,
        max_length: int = 512,
        max_prompt_length: int = 256,
        encoder_decoder: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.encoder_decoder = encoder_decoder
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token, so that a student could never learn to stop")

    def with_template(self, name: str) -> Encoder:
        """The same encoder with another template, by name or as a text of one's own."""
        return Encoder(
            self.tokenizer,
            get_template(name, self.tokenizer),
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            encoder_decoder=self.encoder_decoder,
        )

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]

    def _mixed_ids(self, texts: list[str], special: list[bool]) -> list[list[int]]:
        """Token ids where each text says whether it gets special tokens (a chat template has its own)."""
        if len(set(special)) <= 1:
            return self._ids(texts, special=special[0] if special else True)
        return [self._ids([text], special=own)[0] for text, own in zip(texts, special, strict=True)]

    def prompts(self, rows: Sequence[dict[str, Any]]) -> tuple[list[list[int]], list[str], list[bool]]:
        """Token ids, text, and whether content was cut, for each example."""
        segments = [self.template.render(row) for row in rows]
        texts = ["".join(segment.text for segment in parts) for parts in segments]
        special = [self.template.for_row(row).adds_special_tokens for row in rows]
        ids = self._mixed_ids(texts, special)
        cut = [len(tokens) > self.max_prompt_length for tokens in ids]
        for index in [i for i, too_long in enumerate(cut) if too_long]:
            texts[index], ids[index] = self._shorten(segments[index], rows[index]["id"], special[index])
        for row, tokens in zip(rows, ids, strict=True):
            if not tokens:
                raise UserError(f"example '{row['id']}': its prompt has no tokens. Give it an instruction or a prompt.")
        return ids, texts, cut

    def _shorten(self, segments: list[Segment], name: str, special: bool) -> tuple[str, list[int]]:
        """Cut tokens off the end of the content, in the template's order, until the prompt fits."""
        parts = [segment.text for segment in segments]
        order = sorted((i for i, part in enumerate(segments) if part.cuttable), key=lambda i: segments[i].cut_order)
        for position in order:
            content = self._ids([parts[position]], special=False)[0]
            while content:
                text = "".join(parts)
                excess = len(self._ids([text], special=special)[0]) - self.max_prompt_length
                if excess <= 0:
                    return text, self._ids([text], special=special)[0]
                content = content[: max(0, len(content) - excess)]
                parts[position] = self._text(content)
            parts[position] = ""
        text = "".join(parts)
        ids = self._ids([text], special=special)[0]
        if len(ids) > self.max_prompt_length:
            raise UserError(
                f"example '{name}': the frame of the prompt alone has {len(ids)} tokens, but data.max_prompt_length "
                f"is {self.max_prompt_length}. Raise it, or use a shorter template."
            )
        return text, ids

    def _text(self, content: list[int]) -> str:
        """The text of the first tokens of a content, less a last character that was cut within its bytes."""
        text = self.tokenizer.decode(content, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text).rstrip("\ufffd")

    def responses(
        self, rows: Sequence[dict[str, Any]], prompt_ids: list[list[int]], prompt_texts: list[str], responses: list[str]
    ) -> list[list[int]]:
        """Token ids of the responses as they follow their prompts, with the end of sequence; cut ones lack it.

        A response tokenised on its own can differ from the same text behind its prompt (SentencePiece puts a space
        before a text), and must not begin with a BOS. So prompt and response are tokenised together, and the
        response is what comes after the prompt's own tokens; where the two run into each other it stands alone.
        """
        alone = self._ids(responses, special=False)
        if not self.encoder_decoder:
            texts = [prompt + response for prompt, response in zip(prompt_texts, responses, strict=True)]
            together = self._mixed_ids(texts, [self.template.for_row(row).adds_special_tokens for row in rows])
            for i, (prompt, both) in enumerate(zip(prompt_ids, together, strict=True)):
                if both[: len(prompt)] == prompt and len(both) > len(prompt):
                    alone[i] = _without_end(both[len(prompt) :], self.tokenizer.eos_token_id)
        result = []
        for prompt, response in zip(prompt_ids, alone, strict=True):
            room = self.max_length - (0 if self.encoder_decoder else len(prompt))
            result.append([*response, self.tokenizer.eos_token_id][:room])
        return result

    def encode(
        self,
        examples: datasets.Dataset,
        responses: list[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> datasets.Dataset:
        """Encode examples.

        Args:
            examples: Rows of the example schema.
            responses: Other texts to train on than the first reference (the teacher's, for SeqKD), row by row.
            progress: Called with examples done and examples to do.

        Returns:
            ``id, prompt_ids, response_ids, prompt_cut, response_cut``, in the same order.
        """

        def encode_batch(batch: dict[str, list[Any]], positions: list[int]) -> dict[str, list[Any]]:
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            texts = [
                row["references"][0] if responses is None else responses[i]
                for i, row in zip(positions, rows, strict=True)
            ]
            prompt_ids, prompt_texts, cut = self.prompts(rows)
            response_ids = self.responses(rows, prompt_ids, prompt_texts, texts)
            if progress:
                progress(positions[-1] + 1, len(examples))
            return {
                "id": batch["id"],
                "prompt_ids": prompt_ids,
                "response_ids": response_ids,
                "prompt_cut": cut,
                "response_cut": [ids[-1:] != [self.tokenizer.eos_token_id] for ids in response_ids],
            }

        encoded = examples.map(
            encode_batch,
            batched=True,
            with_indices=True,
            remove_columns=examples.column_names,
            load_from_cache_file=False,
            # Names the file; the library would hash all that the function holds, and cannot hash a progress bar.
            new_fingerprint=fingerprint("tokens", examples._fingerprint, responses is not None),
            features=datasets.Features(
                {
                    "id": datasets.Value("string"),
                    "prompt_ids": datasets.List(datasets.Value("int32")),
                    "response_ids": datasets.List(datasets.Value("int32")),
                    "prompt_cut": datasets.Value("bool"),
                    "response_cut": datasets.Value("bool"),
                }
            ),
        )
        prompts, answers = sum(encoded["prompt_cut"]), sum(encoded["response_cut"])
        if prompts:
            logger.warning(
                "%d of %d prompts are longer than %d tokens: their content was cut, the frame kept",
                prompts, len(encoded), self.max_prompt_length,
            )  # fmt: skip
        if answers:
            logger.warning(
                "%d of %d responses were cut to fit %d tokens; they have no end of sequence",
                answers, len(encoded), self.max_length,
            )  # fmt: skip
        return encoded


def encode_plain_text(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    """Running text as blocks of ``max_length`` tokens: texts end to end, each closed by an end of sequence.

    Returns:
        ``id, prompt_ids, response_ids``: the first token of a block is its prompt, the others are to be predicted.

    Raises:
        UserError: there is less than one block of text.
    """
    stream: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    blocks = [stream[start : start + max_length] for start in range(0, len(stream) - max_length + 1, max_length)]
    if not blocks:
        raise UserError(
            f"data.plain_text has {len(stream)} tokens, less than one block of data.max_length ({max_length}). "
            "Give more text, or leave data.plain_text out."
        )
    return {
        "id": [f"plain-{number}" for number in range(len(blocks))],
        "prompt_ids": [block[:1] for block in blocks],
        "response_ids": [block[1:] for block in blocks],
    }


def _without_end(tokens: list[int], end: int) -> list[int]:
    """Drop an end of sequence that the tokenizer added by itself."""
    return tokens[:-1] if tokens and tokens[-1] == end else tokens
