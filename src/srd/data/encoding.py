"""From examples to token sequences: the prompt within its frame, the response with what closes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from srd.base.errors import UserError
from srd.base.files import fingerprint
from srd.base.handed import check_loaded
from srd.base.remedies import warn
from srd.base.tables import column, data_set, parts_of
from srd.base.text import verb
from srd.data.examples import as_examples, one_for_each_answer
from srd.data.messages import texts_beside
from srd.data.templates.base import PartedError, Segment, Template, class_of, get_template
from srd.data.turns import ControlText, turns_of

logger = logging.getLogger(__name__)

AT_ONCE = 1_000  # examples whose prompts are read together

Pieces = list[tuple[str, bool]]  # a text in pieces with whether each is content, which holds no control tokens


def _pieces(segments: list[Segment]) -> Pieces:
    return [(segment.text, segment.content) for segment in segments]


def _up_to(pieces: Pieces, whole: Pieces, span: tuple[int, int]) -> list[Pieces]:
    """A prompt up to the beginning and up to the end of an answer in it; nothing where the answer was cut.

    Args:
        pieces: Of the prompt as it is read.
        whole: Of the prompt before it was cut.
        span: Of the answer in the whole text.
    """
    found: list[Pieces] = [[], []]
    begin = 0
    for (text, content), (uncut, _) in zip(pieces, whole, strict=True):
        if text != uncut and begin < span[1] and begin + len(uncut) > span[0]:
            return []
        for part, place in zip(found, span, strict=True):
            if begin < place:
                part.append((text if text != uncut else text[: place - begin], content))
        begin += len(uncut)
    return found


class Encoder:
    """Turns examples into prompt and response token ids, the same way for training, reflection and evaluation.

    Args:
        tokenizer: Shared by teacher and student.
        template: Puts the prompt into its frame.
        max_length: Longest prompt and response together, in tokens.
        max_prompt_length: Longest prompt. A longer one loses content; the frame around the answer stays.
        encoder_decoder: The prompt goes to an encoder, the response to a decoder, each with its own length.
        train_on: ``last``: the answer; ``all``: earlier answers of its conversation, too.
        prompts_only: For a model that only writes: responses stay empty, and no template needs to render one.
        positions: Longest sequence that the models take, where they have a limit; a remedy goes no further. Of an
            encoder-decoder the longest response, which is cut there.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        *,
        max_length: int = 512,
        max_prompt_length: int = 256,
        encoder_decoder: bool = False,
        train_on: Literal["last", "all"] = "last",
        prompts_only: bool = False,
        positions: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.encoder_decoder = encoder_decoder
        self.train_on = train_on
        self.prompts_only = prompts_only
        self.positions = positions
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token, so that a student could never learn to stop")
        if train_on == "all" and encoder_decoder:
            raise UserError(
                "data.train_on is all, but an encoder-decoder writes one answer, and its encoder reads the others. Set "
                "data.train_on=last."
            )
        self.turns = turns_of(tokenizer, template.options)
        self.control = ControlText(tokenizer, self.turns)
        self._told_control = False
        self._fitting: set[int] = set()  # frames of prompts that are known to fit
        self._told_notes: dict[str, int] = {}
        self._unclosed = False  # whether a conversation was closed with what its template does not write
        self._longest_prompt = 0  # tokens, of those that were cut
        self._most_cut = self._longest = 0  # tokens: most that a prompt lost, and the longest row, responses uncut

    def with_template(self, name: str) -> Encoder:
        """The same encoder with another template, by name or as a text of one's own."""
        options = self.template.options if class_of(name).takes_options else None
        return self.framed_by(get_template(name, self.tokenizer, options, self.template.day))

    def framed_by(self, template: Template) -> Encoder:
        """The same encoder with this template."""
        return Encoder(
            self.tokenizer,
            template,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            encoder_decoder=self.encoder_decoder,
            train_on=self.train_on,
            prompts_only=self.prompts_only,
            positions=self.positions,
        )

    def _ids(self, texts: list[Pieces], special: list[bool], names: list[str]) -> list[list[int]]:
        """Token ids of texts; ``special`` says which want what the tokenizer puts around a text (never a response)."""
        typed = [any(content and self.control.found(text) for text, content in pieces) for pieces in texts]
        usual = ["".join(text for text, _ in pieces) for pieces, own in zip(texts, typed, strict=True) if not own]
        read = iter(self.tokenizer(usual, add_special_tokens=False, verbose=False)["input_ids"] if usual else [])
        ids = [
            self.control.ids(pieces, name) if own else next(read)
            for pieces, own, name in zip(texts, typed, names, strict=True)
        ]
        return [
            self.turns.framed(tokens, special=own, encoder_decoder=self.encoder_decoder)
            for tokens, own in zip(ids, special, strict=True)
        ]

    def _rendered(self, row: dict[str, Any]) -> list[Segment]:
        """A prompt in pieces; templates from plugins may give something else."""
        segments = self.template.render(row)
        if not isinstance(segments, list) or not all(isinstance(segment, Segment) for segment in segments):
            raise UserError(
                f"example {row['id']!r}: the template {self.template.name!r} renders {type(segments).__name__}: "
                "expected a list of `srd.data.templates.base.Segment`."
            )
        return segments

    def prompts(self, rows: Sequence[dict[str, Any]]) -> tuple[list[list[int]], list[str], list[bool]]:
        """Token ids, text, and whether content was cut, for each example."""
        ids, pieces, cut = self._prompts(rows)
        return ids, ["".join(text for text, _ in parts) for parts in pieces], cut

    def _prompts(self, rows: Sequence[dict[str, Any]]) -> tuple[list[list[int]], list[Pieces], list[bool]]:
        segments = [self._rendered(row) for row in rows]
        texts = [_pieces(parts) for parts in segments]
        special, names = self._special(rows), [row["id"] for row in rows]
        ids = self._ids(texts, special, names)
        for row, pieces in zip(rows, texts, strict=True):
            # A template that rewrites a conversation leaves no piece to be read as text, nor do names and tools.
            typed = self.control.found(row["messages"]) and not any(own and self.control.found(t) for t, own in pieces)
            beside = texts_beside(row) if self.control.found(row["messages"] + (row.get("extra") or "")) else []
            beside = [text for text in beside if self.control.found(text)]
            if typed or beside:
                self.control.note(row["id"], row["messages"], *beside)
                self.control.untold.add(row["id"])
        cut = [len(tokens) > self.max_prompt_length for tokens in ids]
        for index in [i for i, too_long in enumerate(cut) if too_long]:
            whole = len(ids[index])
            texts[index], ids[index] = self._shorten(segments[index], names[index], special[index])
            self._longest_prompt = max(self._longest_prompt, whole)
            self._most_cut = max(self._most_cut, whole - len(ids[index]))
        for name, tokens in zip(names, ids, strict=True):
            if not tokens:
                raise UserError(f"example '{name}': its prompt has no tokens. Give it an instruction or a prompt.")
        return ids, texts, cut

    def _special(self, rows: Sequence[dict[str, Any]]) -> list[bool]:
        return [self.template.for_row(row).adds_special_tokens for row in rows]

    def _shorten(self, segments: list[Segment], name: str, special: bool) -> tuple[Pieces, list[int]]:
        """Cut tokens off the end of the content, in the template's order, until the prompt fits."""
        parts = _pieces(segments)
        order = sorted((i for i, part in enumerate(segments) if part.cuttable), key=lambda i: segments[i].cut_order)
        for position in order:
            (content,) = self._ids([[parts[position]]], [False], [name])
            while content:
                (ids,) = self._ids([parts], [special], [name])
                excess = len(ids) - self.max_prompt_length
                if excess <= 0:
                    return parts, ids
                content = content[: max(0, len(content) - excess)]
                parts[position] = (self._text(content), segments[position].content)
            parts[position] = ("", False)
        (ids,) = self._ids([parts], [special], [name])
        if len(ids) > self.max_prompt_length:
            raise UserError(
                f"example '{name}': the frame of the prompt alone has {len(ids)} tokens, but data.max_prompt_length "
                f"is {self.max_prompt_length}. Raise it, or use a shorter template."
            )
        return parts, ids

    def _text(self, content: list[int]) -> str:
        """The text of the first tokens of a content, less a last character that was cut within its bytes."""
        text = self.tokenizer.decode(content, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text).rstrip("\ufffd")

    def _responses(
        self, rows: Sequence[dict[str, Any]], prompt_ids: list[list[int]], prompts: list[Pieces]
    ) -> tuple[list[list[int]], list[bool]]:
        """Token ids of the first references as they follow their prompts, closed; and which of them were cut.

        A response tokenised on its own can differ from the same text behind its prompt (SentencePiece puts a space
        before a text), and must not begin with a BOS. So prompt and response are tokenised together, and the
        response is what comes after the prompt's own tokens; where the two run into each other it stands alone. What a
        model has written to its end is there in its own ``tokens``, beside the text.
        """
        names, nothing = [row["id"] for row in rows], [False] * len(rows)
        written = {place: row["tokens"] for place, row in enumerate(rows) if row.get("tokens")}
        references = [_pieces(self.template.response(row)) for row in rows]
        alone = self._ids(references, nothing, names)
        if not self.encoder_decoder:
            both = [prompt + reference for prompt, reference in zip(prompts, references, strict=True)]
            for i, (prompt, ids) in enumerate(
                zip(prompt_ids, self._ids(both, self._special(rows), names), strict=True)
            ):
                if ids[: len(prompt)] == prompt and len(ids) > len(prompt):
                    alone[i] = ids[len(prompt) :]
        closed = [
            self._ended(row, prompt, written[place])
            if place in written
            else self._closed(row, prompt, pieces, response)
            for place, (row, prompt, pieces, response) in enumerate(
                zip(rows, prompt_ids, references, alone, strict=True)
            )
        ]
        return self._fitted(closed, prompt_ids)

    def _closed(self, row: dict[str, Any], prompt: list[int], pieces: Pieces, response: list[int]) -> list[int]:
        """A response with what closes it; a frame may bring that itself, a ready-made one with a line break behind."""
        own = bool(pieces) and not pieces[-1][1]
        ends = [i for i, token in enumerate(response) if token in self.turns.stops] if own else []
        if ends and not self._text(response[ends[-1] + 1 :]).strip():
            return response[: ends[-1] + 1]
        return [*response, *self._closing(row, prompt)]

    def _ended(self, row: dict[str, Any], prompt: list[int], tokens: list[int]) -> list[int]:
        """What a model has written and come to an end with, closed as this frame closes it."""
        return [*tokens, self._closing(row, prompt)[-1]]

    def _closing(self, row: dict[str, Any], prompt: list[int]) -> tuple[int, ...]:
        chat = self.template.for_row(row).in_turns
        self._unclosed = self._unclosed or (chat and self.turns.unclosed)
        return self.turns.closing(prompt, chat=chat)

    def _fitted(self, closed: list[list[int]], prompts: list[list[int]]) -> tuple[list[list[int]], list[bool]]:
        """Responses cut to the room that their prompts leave, and which of them were."""
        rooms = [self._longest_response() - (0 if self.encoder_decoder else len(prompt)) for prompt in prompts]
        cut = [len(ids) > room for ids, room in zip(closed, rooms, strict=True)]
        needed = [self._longest_response() - room + len(ids) for ids, room in zip(closed, rooms, strict=True)]
        self._longest = max(self._longest, *needed, 0)
        return [ids[:room] for ids, room in zip(closed, rooms, strict=True)], cut

    def _longest_response(self) -> int:
        """Tokens of a response, with its prompt where both are one sequence; else as a decoder has positions."""
        limit = self.positions if self.encoder_decoder else None
        return self.max_length if limit is None else min(self.max_length, limit)

    def _written(
        self, rows: Sequence[dict[str, Any]], prompts: list[list[int]], tokens: list[list[int]], ended: list[bool]
    ) -> tuple[list[list[int]], list[bool]]:
        """What a model has written, closed as this frame closes it where it came to an end, else left open."""
        closed = [
            self._ended(row, prompt, ids) if over else ids
            for row, prompt, ids, over in zip(rows, prompts, tokens, ended, strict=True)
        ]
        fitted, cut = self._fitted(closed, prompts)
        return fitted, [short or not over for short, over in zip(cut, ended, strict=True)]

    def _earlier(
        self, rows: Sequence[dict[str, Any]], prompt_ids: list[list[int]], prompts: list[Pieces]
    ) -> list[list[int]]:
        """Where the tokens of earlier answers stand in the prompts: first and behind the last, one after the other.

        An answer that lost some of its text with the prompt's content is not learnt.
        """
        ends: list[tuple[int, Pieces]] = []  # the row, and its prompt up to where an answer begins or ends
        for row, (example, pieces) in enumerate(zip(rows, prompts, strict=True)):
            if spans := self.template.earlier(example):
                whole = _pieces(self._rendered(example))
                for span in spans:
                    ends += [(row, part) for part in _up_to(pieces, whole, span)]
        special = self._special(rows)
        ids = self._ids(
            [pieces for _, pieces in ends], [special[row] for row, _ in ends], [rows[row]["id"] for row, _ in ends]
        )
        found: list[list[int]] = [[] for _ in rows]
        for (row, _), tokens in zip(ends, ids, strict=True):
            same = zip(tokens, prompt_ids[row], strict=False)
            found[row].append(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], same)))
        return found

    def encode_rows(
        self, rows: Sequence[dict[str, Any]], written: dict[str, list[Any]] | None = None
    ) -> dict[str, list[Any]]:
        """What `encode` gives of some rows, without their ids. It needs no model, so that a row can be tried by it.

        Raises:
            UserError: a row cannot be encoded: its template refuses it, or its frame is too long. Names it, and why.
        """
        prompt_ids, pieces, cut = self._prompts(rows)
        response_ids: list[list[int]] = [[] for _ in rows]
        response_cut = [False for _ in rows]
        if written is None and not self.prompts_only:
            response_ids, response_cut = self._responses(rows, prompt_ids, pieces)
        elif written is not None:
            response_ids, response_cut = self._written(rows, prompt_ids, written["tokens"], written["ended"])
        columns: dict[str, list[Any]] = {"prompt_ids": prompt_ids, "response_ids": response_ids}
        if self.train_on == "all":  # what a model has written is learnt alone
            columns["earlier"] = [[] for _ in rows] if written else self._earlier(rows, prompt_ids, pieces)
        return {**columns, "prompt_cut": cut, "response_cut": response_cut}

    def refused(self, rows: Sequence[dict[str, Any]]) -> dict[int, UserError]:
        """Which examples cannot be made tokens of, by their positions, and why."""
        found = {}
        for position, row in enumerate(rows):
            try:
                self._try_out(row)
            except UserError as error:
                found[position] = error
        return found

    def _try_out(self, row: dict[str, Any]) -> None:
        """Refuse a row that `encode_rows` would refuse, most of them without tokens.

        A template refuses while it renders. A prompt is too long where it still is with all of its content cut: that
        is, where its frame is, which many rows have in common.
        """
        segments = self._rendered(row)
        frame = [("", False) if segment.cuttable else (segment.text, segment.content) for segment in segments]
        special = self._special([row])
        known = hash((tuple(frame), *special))
        if known not in self._fitting:
            (ids,) = self._ids([frame], special, [row["id"]])
            if 0 < len(ids) <= self.max_prompt_length:
                self._fitting.add(known)
            elif ids or not any(segment.text.strip() for segment in segments):
                self.encode_rows([row])
        if not self.prompts_only:
            for one in one_for_each_answer(row) if self.divided_ids([row]) else [row]:
                self.template.response(one)

    def divided_ids(self, rows: Iterable[dict[str, Any]]) -> list[str]:
        """The conversations whose answers one text cannot hold, so that each has to become an example of its own.

        A template that cuts old thoughts writes an answer in the middle in another way than a model does.
        """
        return [row["id"] for row in rows if self._is_parted(row)]

    def _is_parted(self, row: dict[str, Any]) -> bool:
        if self.train_on == "all" and not self.prompts_only:
            try:
                self.template.earlier(row)
            except PartedError:
                return True
        return False

    def encode(
        self,
        examples: datasets.Dataset,
        written: datasets.Dataset | None = None,
        progress: Callable[[int, int], None] | None = None,
        split: str | None = "",
    ) -> datasets.Dataset:
        """Encode examples, and say what is amiss with them.

        Args:
            examples: Rows of the example schema; ``tokens`` beside are the ids of a first reference that a model wrote.
            written: What a model has written, to train on instead of the first references, row by row: ``tokens``
                without the stop token, and whether they ``ended`` with one.
            progress: Called with examples done and examples to do.
            split: What the examples are called where something is said of them; empty: they are learnt; None: nothing
                is said, as they have been seen before, or nobody gave them.

        Returns:
            ``id, prompt_ids, response_ids, prompt_cut, response_cut``, in the same order.
        """

        def encode_batch(batch: dict[str, list[Any]], positions: list[int]) -> dict[str, list[Any]]:
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            encoded = self.encode_rows(rows, None if written is None else written[positions])
            if progress:
                progress(positions[-1] + 1, len(examples))
            return {"id": batch["id"], **encoded}

        # Names the file; the library would hash all that the function holds, and cannot hash a progress bar.
        name = fingerprint("tokens", examples._fingerprint, written and written._fingerprint)
        if 0 < len(examples) <= AT_ONCE:  # the library takes longer to hand a few rows over than to encode them
            (rows,) = parts_of(examples, examples.column_names, AT_ONCE)
            columns = encode_batch(rows.to_pydict(), list(range(len(examples))))
            encoded = data_set(pa.table(columns, self._features.arrow_schema), name)
        else:
            encoded = examples.map(
                encode_batch,
                batched=True,
                with_indices=True,
                remove_columns=examples.column_names,
                load_from_cache_file=False,
                new_fingerprint=name,
                features=self._features,
            )
        if split is not None:
            cut = (pc.sum(column(encoded, f"{each}_cut")).as_py() or 0 for each in ("prompt", "response"))
            self._tell_prompts(next(cut), len(encoded), split)
            self._tell_responses(next(cut), len(encoded), split, written=written is not None)
            self._tell_frames(len(encoded), split)
        return encoded

    def look_at_prompts(self, examples: datasets.Dataset, split: str) -> None:
        """Say what is amiss with the prompts of examples that are only asked."""
        parts = (range(start, min(start + AT_ONCE, len(examples))) for start in range(0, len(examples), AT_ONCE))
        cut = sum(sum(self.prompts(examples.select(part).to_list())[2]) for part in parts)
        self._tell_prompts(cut, len(examples), split)
        self._tell_frames(len(examples), split)

    @property
    def _features(self) -> datasets.Features:
        tokens = ("prompt_ids", "response_ids", *(["earlier"] if self.train_on == "all" else []))
        return datasets.Features(
            {
                "id": datasets.Value("string"),
                **{name: datasets.List(datasets.Value("int32")) for name in tokens},
                "prompt_cut": datasets.Value("bool"),
                "response_cut": datasets.Value("bool"),
            }
        )

    def _tell_prompts(self, cut: int, count: int, split: str) -> None:
        """Say how many prompts are not whole."""
        if cut:
            what = f"{cut} of {count}{split and f' {split}'} prompts {verb(cut)} longer than"
            what += f" {self.max_prompt_length} tokens"
            warn(logger, f"{what}: their content was cut, the frame kept.", self._longer())

    def _tell_responses(self, cut: int, count: int, split: str, *, written: bool) -> None:
        """Say how many responses are not whole."""
        if cut:
            where, remedy = "where they were written, or " if written else "", self._longer()
            fits = self._longest_response()
            if written:
                remedy = "Raise max_new_tokens of the method that lets them be written, or data.max_length."
            what = f"{cut} of {count}{split and f' {split}'} responses {verb(cut, 'was', 'were')} cut "
            what += f"{where}to fit {fits} tokens"
            warn(logger, f"{what}; they have no end of sequence.", remedy)

    def _tell_frames(self, count: int, split: str) -> None:
        """Say what the template leaves out or does not close, and how many texts look like control tokens."""
        for what, names in self.template.notes.items():
            if new := list(names)[self._told_notes.get(what, 0) :]:
                self._told_notes[what] = len(names)
                warn(
                    logger,
                    f"the chat template {what}: {len(new)} of {count}{split and f' {split}'} examples, the first is "
                    f"{new[0]!r}.",
                    "Correct the template (chat_template.jinja in the model's folder), choose another one with "
                    "data.template, or change these rows.",
                )
        if self._unclosed:
            warn(
                logger,
                f"the chat template closes an answer with no control token: {self.tokenizer.eos_token} closes them.",
                "Let the template write it behind an assistant's message (chat_template.jinja in the model's folder), "
                "so that wherever the model is used it stops there.",
            )
        if self.control.met and not self._told_control:
            self._told_control = True
            self._tell_control(count)

    def _longer(self) -> str:
        """What to do so that all that was met is whole."""
        prompt = max(self._longest_prompt, self.max_prompt_length)
        beside = 0 if self.encoder_decoder else self._most_cut
        whole = max(self._longest + beside, prompt + 1, self.max_length)
        needed = {"data.max_prompt_length": prompt, "data.max_length": whole}
        now = {"data.max_prompt_length": self.max_prompt_length, "data.max_length": self.max_length}
        if self.positions is not None and whole > self.positions:
            return f"The models take {self.positions} tokens, and these rows {whole}: shorten them, or leave them out."
        settings = " ".join(f"{name}={value}" for name, value in needed.items() if value > now[name])
        return f"{settings} takes them whole; or shorten these rows."

    def _tell_control(self, count: int) -> None:
        met, untold = len(self.control.met), len(self.control.untold)
        what = (
            f"{met} of {count} examples {verb(met, 'holds', 'hold')} the words of a control token (the first "
            f"{self.control.first}): there they are words, not the token"
        )
        remedy = "Where they are meant as the token, give the row as prompt and completion; else all is well."
        if untold:
            what += f"; in {untold} of them the tokenizer cannot tell them from the token"
            remedy = "Remove the words from these rows."
        warn(logger, f"{what}.", remedy)


def encode(
    rows: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "auto",
    max_length: int = 512,
    max_prompt_length: int = 256,
    encoder_decoder: bool = False,
    template_arguments: Mapping[str, Any] | None = None,
    train_on: Literal["last", "all"] = "last",
) -> datasets.Dataset:
    """Rows as token ids, prompt and response apart, as they are trained on.

    Args:
        rows: Such as ``{"instruction": …, "output": …}``, in a list of dicts, a ``datasets.Dataset``, or a pandas,
            polars or pyarrow table.
        tokenizer: Of teacher and student.
        template: ``auto``, ``alpaca``, ``chat``, ``plain``, or a text with ``{instruction}`` and ``{input}``.
        max_length: Longest prompt and response, in tokens; a longer response is cut.
        max_prompt_length: Longest prompt; a longer one loses content, not its frame.
        encoder_decoder: The models are of that kind.
        template_arguments: Further arguments of the chat template, such as ``{"enable_thinking": False}``;
            ``chat_template`` names one of several.
        train_on: ``last``: the answer; ``all``: earlier answers of a conversation, too.

    Returns:
        ``id, prompt_ids, response_ids, prompt_cut, response_cut, references``, in the order of ``rows``; with ``all``
        also ``earlier``, where earlier answers stand in the prompt: first token and behind the last, in a row.

    Raises:
        UserError: no rows, rows that are no examples (named), or lengths that leave no room for a response.
    """
    check_loaded(tokenizer=tokenizer)
    if not 0 < max_prompt_length < max_length:
        raise UserError(
            f"max_prompt_length is {max_prompt_length}, but must be from 1 to max_length ({max_length}) - 1. Give "
            "both, such as max_length=512, max_prompt_length=256."
        )
    examples = as_examples(rows)
    encoder = Encoder(
        tokenizer,
        get_template(template, tokenizer, template_arguments),
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        encoder_decoder=encoder_decoder,
        train_on=train_on,
    )
    references = examples.select_columns("references")
    return datasets.concatenate_datasets([encoder.encode(examples), references], axis=1)


def is_encoded(rows: Any) -> bool:
    """Whether rows are what `encode` gives."""
    return isinstance(rows, datasets.Dataset) and {"prompt_ids", "response_ids"} <= set(rows.column_names)
