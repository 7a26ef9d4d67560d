"""What an example is, how rows of the usual shapes become examples, and how examples are split.

An example is a row of a `datasets.Dataset` with the columns of `EXAMPLE_FEATURES`. Rows are recognised one by
one, held as Arrow chunks (a million rows never exist as Python objects at once), and get an id that depends
on their content only, never on their position.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.table import InMemoryTable

from srd.errors import UserError

EXAMPLE_FEATURES = Features(
    {
        "id": Value("string"),
        "instruction": Value("string"),
        "input": Value("string"),
        "messages": Value("string"),
        "prompt": Value("string"),
        "references": List(Value("string")),
        "corruption": Value("string"),
    }
)

# Question field -> the answer fields that may go with it, in order of preference.
ANSWER_FIELDS: dict[str, tuple[str, ...]] = {
    "instruction": ("output", "response"),
    "prompt": ("completion", "response", "output"),
    "question": ("answer",),
}
CONTEXT_FIELDS = ("input", "context")
ROW_FIELDS = frozenset({"id", "messages", *ANSWER_FIELDS, *CONTEXT_FIELDS, *sum(ANSWER_FIELDS.values(), ())})
ACCEPTED_SHAPES = (
    "instruction + output or response (with input or context where there is one), "
    "prompt + completion or response, question + answer, messages (a conversation)"
)
ROLES = ("system", "user", "assistant", "tool")
CHUNK_ROWS = 10_000


def examples_from_rows(rows: Iterable[Mapping[str, Any]], origin: str, *, id_prefix: str = "row") -> Dataset:
    """Turn rows of any accepted shape into examples.

    Args:
        rows: dictionaries; consumed once, in order.
        origin: where they come from, for error messages ("data.jsonl").
        id_prefix: start of the ids of rows that bring none.

    Returns:
        A dataset with exactly the columns of `EXAMPLE_FEATURES`, in the order of the rows.

    Raises:
        UserError: a row is of no accepted shape, a field is empty or of the wrong type, an id is used twice,
            or there are no rows.
    """
    builder = ExampleBuilder(origin, id_prefix)
    for number, row in enumerate(rows, start=1):
        builder.add(row, f"{origin}: row {number}")
    return builder.finish()


class ExampleBuilder:
    """Collects examples into Arrow chunks and gives them their ids.

    The ids are the rows' own if every row has one; otherwise `<prefix>-<hash of the content>`, with `-2`,
    `-3`, … for content that was there before.
    """

    def __init__(self, origin: str, id_prefix: str) -> None:
        """Start empty; `origin` is named in errors, `id_prefix` begins the ids."""
        self.origin = origin
        self.id_prefix = id_prefix
        self.count = 0
        self._pending: list[dict[str, Any]] = []
        self._chunks: list[pa.Table] = []
        self._content_ids: list[str] = []
        self._repeats: Counter[str] = Counter()
        self._own_ids: dict[str, str] | None = {}
        self._duplicate = ""
        self._schema = pa.schema([field for field in EXAMPLE_FEATURES.arrow_schema if field.name != "id"])

    def add(self, row: Mapping[str, Any], place: str) -> None:
        """Recognise one row; `place` (file and line) is named in errors."""
        example = example_from_row(row, place)
        self._note_own_id(row.get("id"), place)
        digest = content_hash(example)
        self._repeats[digest] += 1
        repeat = f"-{self._repeats[digest]}" if self._repeats[digest] > 1 else ""
        self._content_ids.append(f"{self.id_prefix}-{digest}{repeat}")
        self._pending.append(example)
        self.count += 1
        if len(self._pending) == CHUNK_ROWS:
            self._flush()

    def finish(self) -> Dataset:
        """Return the dataset; UserError where there are no rows or two rows have one id."""
        if not self.count:
            raise UserError(f"{self.origin}: there are no rows in it. Give a source with at least one row.")
        self._flush()
        ids = self._content_ids
        if self._own_ids is not None:
            if self._duplicate:
                raise UserError(self._duplicate)
            ids = list(self._own_ids)
        table = pa.concat_tables(self._chunks)
        chunks = [ids[start : start + CHUNK_ROWS] for start in range(0, len(ids), CHUNK_ROWS)]
        table = table.add_column(0, EXAMPLE_FEATURES.arrow_schema.field("id"), pa.chunked_array(chunks, pa.string()))
        # The library would pickle the whole table to name it; the ids and contents name it just as well.
        fingerprint = hashlib.blake2b("\n".join([*ids, *self._content_ids]).encode(), digest_size=8).hexdigest()
        table = table.replace_schema_metadata(EXAMPLE_FEATURES.arrow_schema.metadata)
        return Dataset(InMemoryTable(table), fingerprint=fingerprint)

    def _note_own_id(self, value: Any, place: str) -> None:
        if self._own_ids is None:
            return
        if value is None or value == "":
            self._own_ids = None
            return
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(f"{place}: field 'id' is {_kind(value)}, expected text or a whole number.")
        name = str(value)
        if name in self._own_ids and not self._duplicate:
            self._duplicate = (
                f"the id {name!r} is used twice: {self._own_ids[name]} and {place}. "
                "Make the ids unique, or leave the field 'id' out to have ids made from the content."
            )
        self._own_ids.setdefault(name, place)

    def _flush(self) -> None:
        if self._pending:
            self._chunks.append(pa.Table.from_pylist(self._pending, schema=self._schema))
            self._pending = []


def content_hash(example: Mapping[str, Any]) -> str:
    """Hash prompt side and references of an example to 16 hexadecimal digits."""
    parts = [example[name] for name in ("instruction", "input", "messages", "prompt", "references")]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def example_from_row(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Recognise the shape of one row and return its example, without id.

    A field that is null counts as missing. Where a row has both an instruction and a ready-made prompt
    (MiniLLM's files), the instruction wins.

    Raises:
        UserError: names `place`, the field, and what is expected.
    """
    present = {name: value for name, value in row.items() if value is not None}
    if "messages" in present:
        return _from_messages(present["messages"], place, "messages")
    if isinstance(present.get("prompt"), list):
        turns = [*present["prompt"], *_as_turns(_first(present, ANSWER_FIELDS["prompt"], place), place)]
        return _from_messages(turns, place, "prompt")
    question, answer = _question_and_answer(present, place)
    text = _text(present[question], place, question)
    if not text.strip() and question != "prompt":
        raise UserError(f"{place}: field {question!r} is empty. Fill it in, or remove the row.")
    context = next((name for name in CONTEXT_FIELDS if name in present), None)
    is_prompt = question == "prompt"
    return {
        "instruction": text,
        "input": "" if context is None or is_prompt else _text(present[context], place, context),
        "messages": "",
        "prompt": text if is_prompt else "",
        "references": _references(present[answer], place, answer),
        "corruption": "",
    }


def _question_and_answer(row: Mapping[str, Any], place: str) -> tuple[str, str]:
    candidates = [
        (question, answer)
        for question, answers in ANSWER_FIELDS.items()
        for answer in answers
        if question in row and answer in row
    ]
    if not candidates:
        found = ", ".join(sorted(map(str, row))) or "nothing"
        raise UserError(
            f"{place}: no question with an answer in this row. Fields found: {found}. "
            f"Expected one of: {ACCEPTED_SHAPES}. Other names can be mapped with 'columns', "
            "for example `columns: {instruction: task, output: solution}`."
        )
    filled = [pair for pair in candidates if not isinstance(row[pair[0]], str) or row[pair[0]].strip()]
    return (filled or candidates)[0]


def _first(row: Mapping[str, Any], names: Sequence[str], place: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise UserError(f"{place}: the answer is missing, expected one of the fields {', '.join(names)}.")


def _as_turns(answer: Any, place: str) -> list[Any]:
    if isinstance(answer, list):
        return answer
    return [{"role": "assistant", "content": _text(answer, place, "completion")}]


def _from_messages(value: Any, place: str, field: str) -> dict[str, Any]:
    """Take the last assistant message as the answer, and what comes before it as the conversation."""
    turns = _parse_messages(value, place, field)
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise UserError(f"{place}: field {field!r} has no assistant message, which would be the answer.")
    conversation = turns[: answers[-1]]
    users = [turn["content"] for turn in conversation if turn["role"] == "user"]
    if not users:
        raise UserError(f"{place}: field {field!r} has no user message before the last assistant message.")
    return {
        "instruction": users[-1],
        "input": "",
        "messages": json.dumps(conversation, ensure_ascii=False),
        "prompt": "",
        "references": _references(turns[answers[-1]]["content"], place, f"{field}[{answers[-1]}].content"),
        "corruption": "",
    }


def _parse_messages(value: Any, place: str, field: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: field {field!r} is text but not JSON ({error}).") from error
    if not isinstance(value, list) or not value:
        raise UserError(f"{place}: field {field!r} is {_kind(value)}, expected a list of messages.")
    turns = []
    for index, message in enumerate(value):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise UserError(f"{place}: {field}[{index}] is {_kind(message)}, expected {{role, content}}.")
        if message["role"] not in ROLES:
            raise UserError(
                f"{place}: {field}[{index}].role is {message['role']!r}, expected one of {', '.join(ROLES)}."
            )
        content = _text(message["content"], place, f"{field}[{index}].content")
        turns.append({"role": str(message["role"]), "content": content})
    return turns


def _references(value: Any, place: str, field: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise UserError(f"{place}: field {field!r} is an empty list. Give at least one reference answer.")
    references = [_text(item, place, field) for item in values]
    if not all(reference.strip() for reference in references):
        raise UserError(f"{place}: field {field!r} holds an empty response. Fill it in, or remove the row.")
    return references


def _text(value: Any, place: str, field: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: field {field!r} is {_kind(value)}, expected text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: field {field!r} holds half a surrogate pair at character {error.start}, which is no "
            "valid text. Repair the escape sequence in the file."
        ) from error
    return value


def _kind(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def split_examples(examples: Dataset, validation: int | float, test: int | float, seed: int) -> DatasetDict:
    """Split into train, validation and test by a hash of the ids, whatever the order of the rows.

    Rows with the same prompt stay together, so that a repeated question is never both trained on and tested.

    Args:
        examples: rows with the columns of `EXAMPLE_FEATURES`.
        validation: a count (int), or a share of the rows (float below 1); 0 for none.
        test: likewise.
        seed: another seed gives another split.

    Returns:
        `train`, and `validation` and `test` where they are not empty; each in the order of `examples`. Counts
        are exact unless repeated prompts make that impossible; then they are the nearest below.

    Raises:
        UserError: a negative count, a share of 1 or more, or nothing left to train on.
    """
    sizes = {
        name: _split_size(size, len(examples), name) for name, size in (("validation", validation), ("test", test))
    }
    if sum(sizes.values()) >= len(examples):
        raise UserError(
            f"validation ({sizes['validation']}) and test ({sizes['test']}) take all {len(examples)} "
            "examples. Leave some for training: make them smaller, or give more data."
        )
    rows = split_by_group(_leak_groups(examples), sizes, seed)
    return DatasetDict({name: examples.select(indices) for name, indices in rows.items() if indices})


def _split_size(size: int | float, count: int, name: str) -> int:
    is_share = isinstance(size, float)
    if size < 0 or (is_share and size >= 1):
        raise UserError(f"{name}: {size} is neither a count (0, 1, 2, …) nor a share below 1 (such as 0.1).")
    return round(size * count) if is_share else int(size)


def _leak_groups(examples: Dataset) -> list[str]:
    """Name for each row the smallest id of the rows that have the same prompt."""
    keys: list[bytes] = []
    for batch in examples.iter(batch_size=CHUNK_ROWS):
        columns = (batch["instruction"], batch["input"], batch["messages"], batch["references"])
        for instruction, context, messages, references in zip(*columns, strict=True):
            # Plain text has no prompt; there the text itself is what may repeat.
            key = [instruction, context, messages] if instruction or messages else references
            keys.append(hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest())
    ids = examples["id"]
    smallest: dict[bytes, str] = {}
    for key, name in zip(keys, ids, strict=True):
        smallest[key] = min(name, smallest.get(key, name))
    return [smallest[key] for key in keys]


def split_by_group(groups: Sequence[str], sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Distribute rows over splits, group by group, in the order of a seeded hash of the group's name.

    Args:
        groups: the group of each row; rows of one group stay together.
        sizes: wanted number of rows of each split but `train`, which takes the rest.
        seed: of the hash.

    Returns:
        For `train` and every name in `sizes` the ascending row numbers.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)

    def shuffled(group: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=16).digest()

    rows: dict[str, list[int]] = {"train": [], **{name: [] for name in sizes}}
    for group in sorted(members, key=shuffled):
        fitting = (name for name, size in sizes.items() if len(rows[name]) + len(members[group]) <= size)
        rows[next(fitting, "train")].extend(members[group])
    return {name: sorted(indices) for name, indices in rows.items()}
