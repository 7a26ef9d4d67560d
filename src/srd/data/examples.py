"""What an example is, how rows of the usual shapes become examples, and how examples are split.

An example is a row of a `datasets.Dataset` with the columns of `EXAMPLE_FEATURES`. Rows are recognised one by
one, put down in an Arrow file a chunk at a time and read through a memory map (a million rows never exist as
Python objects at once), and get an id that depends on their content only, never on their position.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.table import InMemoryTable
from numpy.typing import NDArray

from srd.base.errors import UserError
from srd.base.files import fingerprint
from srd.base.tables import column
from srd.data.bad_rows import BadRows, Check, Owner, content_of, without_refused
from srd.data.messages import (
    MAPPED,
    answer_of,
    conversation_of,
    extra_of,
    kind,
    plain_text,
    read_messages,
    read_tools,
    refuse_arguments,
    refuse_media,
    text_of,
)
from srd.data.rows import as_table, row_dicts, with_ids
from srd.data.shapes import CONTEXTS, PAIRS, pair_of, recognised

EXAMPLE_FEATURES = Features(
    {
        "id": Value("string"),
        "instruction": Value("string"),
        "input": Value("string"),
        "messages": Value("string"),
        "prompt": Value("string"),
        "references": List(Value("string")),
        "corruption": Value("string"),
        "extra": Value("string"),
    }
)

ANSWER_FIELDS = dict(PAIRS)
ACCEPTED_SHAPES = (
    "instruction + output or response (with input or context where there is one), prompt + completion or response, "
    "question + answer, messages or conversations"
)
CHUNK_ROWS = 10_000
FILE_SCHEMA = pa.schema([*EXAMPLE_FEATURES.arrow_schema, pa.field("place", pa.string())])


def examples_from_rows(
    rows: Iterable[Mapping[str, Any]],
    origin: str,
    *,
    id_prefix: str = "row",
    bad: BadRows | None = None,
    owner: Owner | None = None,
) -> Dataset:
    """Turn rows of any accepted shape into examples.

    Args:
        rows: dictionaries; consumed once, in order.
        origin: where they come from, for error messages ("data.jsonl").
        id_prefix: start of the ids of rows that bring none.
        bad: takes the rows that cannot become examples; None: they are an error.
        owner: says whose a row is.

    Returns:
        A dataset with exactly the columns of `EXAMPLE_FEATURES`, in the order of the rows.

    Raises:
        UserError: rows are of no accepted shape, fields are empty or of the wrong type (all of them together), an id
            is used twice, or there are no rows.
    """
    refused = BadRows()
    builder = ExampleBuilder(origin, id_prefix, refused if bad is None else bad)
    for number, row in enumerate(rows, start=1):
        place = f"{origin}: row {number}"
        try:
            builder.add(row, place, owner(row, place) if owner else "")
        except UserError as error:
            builder.bad.add(place, row, error)
    examples = builder.finish()
    refused.settle()
    return examples


def as_examples(rows: Any, bad: BadRows | None = None, origin: str = "examples", owner: Owner | None = None) -> Dataset:
    """Turn rows in any container into examples; a data set of examples stays as it is.

    Args:
        rows: what `row_dicts` takes.
        bad: as of `examples_from_rows`.
        origin: likewise.
        owner: likewise.

    Raises:
        UserError: as `examples_from_rows`.
    """
    columns = getattr(rows, "column_names", None)
    if isinstance(rows, Dataset) and set(EXAMPLE_FEATURES) - {"extra"} <= set(columns or ()):
        with_ids(as_table(rows.select_columns("id"), ["id"], "examples"), "examples")
        return rows
    return examples_from_rows(row_dicts(rows, "examples"), origin, bad=bad, owner=owner)


class ExampleBuilder:
    """Collects examples in a nameless temporary file (below TMPDIR) and gives them their ids.

    The ids are the rows' own if every row has one; otherwise `<prefix>-<hash of the content>`, with `-2`,
    `-3`, … for content that was there before.

    Args:
        origin: named in errors.
        id_prefix: begins the ids.
        bad: takes the rows that cannot become examples.
        check: says which examples cannot be used.
    """

    def __init__(self, origin: str, id_prefix: str, bad: BadRows, check: Check | None = None) -> None:
        self.origin = origin
        self.id_prefix = id_prefix
        self.bad = bad
        self.check = check
        self.shapes: Counter[str] = Counter()  # how many rows have which
        self._pending: list[dict[str, Any]] = []
        self._digests = array("Q")
        self._names = array("Q")  # hashes of the rows' own ids; 0: it has none
        self._unfit = self._counted = 0  # rows whose ids cannot stay, of so many
        self._file = tempfile.TemporaryFile(prefix="srd-examples-")  # noqa: SIM115 - closed in finish
        self._stream = pa.ipc.new_stream(self._file, FILE_SCHEMA)

    def add(self, row: Mapping[str, Any], place: str, teacher: str = "") -> None:
        """Recognise one row, perhaps with a teacher of its own; `place` (file and line) is named in errors."""
        try:
            title, native = recognised(row, place)
            example = example_from_row(native, place)
            if teacher:
                example["extra"] = json.dumps({**extra_of(example), "teacher": teacher}, ensure_ascii=False)
            self._pending.append({**example, "id": _own_id(native.get("id"), place), "place": place})
            self.shapes[title] += 1
        except UserError as error:
            self.bad.add(place, row, error)
        if len(self._pending) == CHUNK_ROWS:
            self._flush()

    def has(self, count: int | None) -> bool:
        """Whether there are so many examples (None: never)."""
        if count is None or len(self._digests) + len(self._pending) < count + self._unfit:
            return False
        self._flush()
        if self._counted < len(self._digests):
            self._counted, self._unfit = len(self._digests), len(self._misnamed())
        return len(self._digests) >= count + self._unfit

    def finish(self) -> Dataset:
        """Return the dataset, less rows that are named twice or not as others are; UserError: there are no rows."""
        self._flush()
        if not self._digests:
            if self.bad.count:
                raise self.bad.nothing_left(self.origin)
            raise UserError(f"{self.origin}: there are no rows in it. Give a source with at least one row.")
        self._stream.close()
        self._file.flush()
        mapped = pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        self._file.close()  # the map holds it; with the last use of the map it is gone
        table = pa.ipc.open_stream(pa.BufferReader(mapped)).read_all()
        digests = np.frombuffer(self._digests, np.uint64)
        if misnamed := self._misnamed():
            self._refuse(misnamed, table)
            kept = np.delete(np.arange(len(digests)), list(misnamed))
            table, digests = table.take(kept), digests[kept]
        if table["id"].null_count:
            table = table.set_column(0, FILE_SCHEMA.field("id"), self._content_ids(digests))
        # The library would pickle the whole table to name it; the ids and contents name it just as well.
        name = hashlib.blake2b(digests.tobytes(), digest_size=8)
        for chunk in table["id"].chunks:
            name.update("\n".join(chunk.to_pylist()).encode())
        table = table.select(list(EXAMPLE_FEATURES)).replace_schema_metadata(EXAMPLE_FEATURES.arrow_schema.metadata)
        return Dataset(InMemoryTable(table), fingerprint=name.hexdigest())

    def _misnamed(self) -> dict[int, int]:
        """The places of rows that lack the id that most have, have one that most lack, or repeat one.

        Beside each stands the place of the row that it is measured by.
        """
        names = np.frombuffer(self._names, np.uint64)
        own = names != 0
        wanted = 2 * np.count_nonzero(own) >= len(names)  # else ids are made from the content
        found = dict.fromkeys(np.flatnonzero(own != wanted).tolist(), int(np.argmax(own == wanted)))
        if wanted:
            _, first, same = np.unique(names, return_index=True, return_inverse=True)
            again = np.flatnonzero(own & (first[same] != np.arange(len(names))))
            found |= dict(zip(again.tolist(), first[same[again]].tolist(), strict=True))
        return found

    def _refuse(self, misnamed: Mapping[int, int], table: pa.Table) -> None:
        """Note rows whose ids cannot stay, which were taken for good."""
        for place, other in sorted(misnamed.items()):
            row, measure = (table.slice(number, 1).to_pylist()[0] for number in (place, other))
            self.bad.lose(row["place"], content_of(row), _misnamed_error(row, measure), row["id"])

    def _content_ids(self, digests: NDArray[np.uint64]) -> pa.ChunkedArray:
        times = _occurrences(digests)
        chunks = []
        for start in range(0, len(digests), CHUNK_ROWS):
            pairs = zip(digests[start : start + CHUNK_ROWS], times[start : start + CHUNK_ROWS], strict=True)
            names = [self._content_id(digest) + (f"-{time}" if time > 1 else "") for digest, time in pairs]
            chunks.append(pa.array(names, pa.string()))
        return pa.chunked_array(chunks)

    def _flush(self) -> None:
        """Put down the examples that can be used."""
        pending, self._pending = self._pending, []
        digests = [content_hash(example) for example in pending]
        named = [
            {**example, "id": example["id"] or self._content_id(digest)}
            for example, digest in zip(pending, digests, strict=True)
        ]
        kept = without_refused(named, [example["place"] for example in pending], self.check, self.bad)
        self._digests.extend(digests[position] for position in kept)
        self._names.extend(_hash(pending[position]["id"]) if pending[position]["id"] else 0 for position in kept)
        if kept:
            rows = [pending[position] for position in kept]
            self._stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=FILE_SCHEMA))

    def _content_id(self, digest: int) -> str:
        return f"{self.id_prefix}-{digest:016x}"


def _own_id(value: Any, place: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():  # as tables have whole numbers where some are missing
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{place}: field 'id': expected text or a whole number, found {kind(value)}.")
    return text_of(str(value), place, "id")


def _misnamed_error(row: Mapping[str, Any], other: Mapping[str, Any]) -> UserError:
    """Why the id of a row, or that it has none, does not go with another row."""
    before = Path(other["place"]).name  # wherever the files lie
    every = "Give every row an 'id', or none: ids are then made from the content."
    if row["id"] is None:
        error = UserError(f"the row has no id, but others have one (such as {before}). {every}")
        error.fault = "no id"
    elif other["id"] is None:
        error = UserError(f"the row has an id, {row['id']!r}, but most have none (such as {before}). {every}")
        error.fault = "an id alone"
    else:
        error = UserError(
            f"the id {row['id']!r} is used twice, first by {before}. Make the ids unique, or leave the field 'id' out "
            "to have ids made from the content."
        )
        error.fault = "an id twice"
    return error


def _occurrences(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each value, how many equal ones there are up to its place, itself included."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    times = np.empty(len(values), np.int64)
    times[order] = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values))) + 1
    return times


def content_hash(example: Mapping[str, Any]) -> int:
    """Hash prompt side and references of an example to 64 bits."""
    content = [example[name] for name in ("instruction", "input", "messages", "prompt", "references")]
    extra = example.get("extra")
    if extra and "teacher" in (beside := extra_of(example)):  # who teaches it makes no other example of it
        beside.pop("teacher")
        extra = json.dumps(beside, ensure_ascii=False) if beside else ""
    return _hash([*content, *filter(None, [extra])])


def _hash(parts: Any) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest(), "big")


def example_from_row(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Recognise the shape of one row and return its example, without id.

    A field that is null counts as missing. Where a row has both an instruction and a ready-made prompt
    (MiniLLM's files), the instruction wins.

    Raises:
        UserError: names `place`, the field, and what is expected.
    """
    present = {name: value for name, value in row.items() if value is not None}
    refuse_media(present, place)
    refuse_arguments(present, place)
    if "messages" in present:
        return _from_messages(present["messages"], present.get("tools"), place, "messages")
    if isinstance(present.get("prompt"), list):
        turns = [*present["prompt"], *_as_turns(_first(present, ANSWER_FIELDS["prompt"], place), place)]
        return _from_messages(turns, present.get("tools"), place, "prompt")
    question, answer = _question_and_answer(present, [name for name in row if name not in present], place)
    text = text_of(present[question], place, question)
    if not text.strip() and question != "prompt":
        raise UserError(f"{place}: field {question!r} is empty. Fill it in, or remove the row.")
    context = next((name for name in CONTEXTS if name in present and name != question), None)
    is_prompt = question == "prompt"
    return {
        "instruction": text,
        "input": "" if context is None or is_prompt else text_of(present[context], place, context),
        "messages": "",
        "prompt": text if is_prompt else "",
        "references": _references(_all_answers(present, answer), place, answer),
        "corruption": "",
        "extra": "",
    }


def _all_answers(row: Mapping[str, Any], answer: str) -> Any:
    """The answer, or the list of ``references`` that begins with it, as `srd curate` writes several."""
    references = row.get("references")
    return references if isinstance(references, list) and references[:1] == [row[answer]] else row[answer]


def _question_and_answer(row: Mapping[str, Any], nulls: Sequence[str], place: str) -> tuple[str, str]:
    pair = pair_of(row)
    if pair is None:
        fields = ", ".join(sorted(map(str, row))) or "nothing"
        null = f"; null: {', '.join(sorted(map(str, nulls)))}" if nulls else ""
        error = UserError(
            f"{place}: no question with an answer in this row. Fields found: {fields}{null}. "
            f"Expected one of: {ACCEPTED_SHAPES}. {MAPPED % 'instruction: task, output: solution'}"
        )
        error.fault = "no question with an answer"
        raise error
    return pair


def _first(row: Mapping[str, Any], names: Sequence[str], place: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise UserError(f"{place}: the answer is missing, expected one of the fields {', '.join(names)}.")


def _as_turns(answer: Any, place: str) -> list[Any]:
    if isinstance(answer, list):
        return answer
    return [{"role": "assistant", "content": text_of(answer, place, "completion")}]


def _from_messages(value: Any, tools: Any, place: str, field: str) -> dict[str, Any]:
    """Take the last assistant message that is to be learnt as the answer, what comes before as the conversation."""
    turns = read_messages(value, place, field)
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise UserError(f"{place}: field {field!r} has no assistant message, which would be the answer.")
    learnt = [index for index in answers if turns[index].get("train", True)]
    if not learnt:
        raise UserError(f"{place}: field {field!r} has no assistant message that is to be learnt.")
    conversation, answer = turns[: learnt[-1]], turns[learnt[-1]]
    users = [plain_text(turn) for turn in conversation if turn["role"] == "user"]
    if not users:
        raise UserError(f"{place}: field {field!r} has no user message before the last assistant message.")
    if not users[-1].strip():
        raise UserError(f"{place}: field {field!r}: the last user message is empty. Fill it in, or remove the row.")
    text = plain_text(answer)
    given = read_tools(tools, place) if tools else []
    extra: dict[str, Any] = {"tools": given} if given else {}  # templates take an empty list for tools
    if answer != {"role": "assistant", "content": text}:
        extra["answer"] = answer
    return {
        "instruction": users[-1],
        "input": "",
        "messages": json.dumps(conversation, ensure_ascii=False),
        "prompt": "",
        "references": _references(text, place, f"{field}[{learnt[-1]}].content"),
        "corruption": "",
        "extra": json.dumps(extra, ensure_ascii=False) if extra else "",
    }


def _references(value: Any, place: str, field: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise UserError(f"{place}: field {field!r} is an empty list. Give at least one reference answer.")
    references = [text_of(item, place, field) for item in values]
    if not all(reference.strip() for reference in references):
        raise UserError(f"{place}: field {field!r} holds an empty response. Fill it in, or remove the row.")
    return references


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
    # Each by a name of its own: the library would pickle all of the places to find one.
    names = {name: fingerprint(examples._fingerprint, sizes, seed, name) for name in rows}
    return DatasetDict(
        {name: examples.select(there, new_fingerprint=names[name]) for name, there in rows.items() if len(there)}
    )


def _split_size(size: int | float, count: int, name: str) -> int:
    is_share = isinstance(size, float)
    if size < 0 or (is_share and size >= 1):
        raise UserError(f"{name}: {size} is neither a count (0, 1, 2, …) nor a share below 1 (such as 0.1).")
    return round(size * count) if is_share else int(size)


def _leak_groups(examples: Dataset) -> pa.ChunkedArray:
    """Name for each row the smallest id of the rows that have the same prompt."""
    keys = array("Q")
    for batch in examples.iter(batch_size=CHUNK_ROWS):
        columns = (batch["instruction"], batch["input"], batch["messages"], batch["references"])
        for instruction, context, messages, references in zip(*columns, strict=True):
            # Plain text has no prompt; there the text itself is what may repeat.
            key = [instruction, context, messages] if instruction or messages else references
            keys.append(_hash(key))
    table = pa.table({"key": np.frombuffer(keys, np.uint64), "id": column(examples, "id")})
    smallest = table.group_by("key").aggregate([("id", "min")])
    return smallest["id_min"].take(pc.index_in(table["key"], value_set=smallest["key"].combine_chunks()))


def split_by_group(
    groups: pa.ChunkedArray | Sequence[str], sizes: Mapping[str, int], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Distribute rows over splits, group by group, in the order of a seeded hash of the group's name.

    Args:
        groups: the group of each row; rows of one group stay together.
        sizes: wanted number of rows of each split but `train`, which takes the rest.
        seed: of the hash.

    Returns:
        For `train` and every name in `sizes` the ascending row numbers.
    """
    column = groups if isinstance(groups, pa.ChunkedArray) else pa.chunked_array([groups], pa.string())
    numbered = column.combine_chunks().dictionary_encode()
    group_of_row, names = numbered.indices.to_numpy(), numbered.dictionary.to_pylist()
    members = np.bincount(group_of_row, minlength=len(names)).tolist()
    digests = b"".join(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest() for name in names)
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2)
    splits, room = ["train", *sizes], {number: size for number, size in enumerate(sizes.values(), start=1)}
    split_of_group = np.zeros(len(names), np.int8)
    for group in np.lexsort((halves[:, 1], halves[:, 0])).tolist():
        chosen = next((number for number, left in room.items() if members[group] <= left), 0)
        split_of_group[group] = chosen
        if chosen:
            room[chosen] -= members[group]
    return {name: np.flatnonzero(split_of_group[group_of_row] == number) for number, name in enumerate(splits)}


def row_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example as a row of an accepted shape with its id, which is read back as the same example."""
    references = example["references"]
    content: dict[str, Any]
    if example["messages"]:
        content = {"messages": [*conversation_of(example), answer_of(example)], "tools": extra_of(example).get("tools")}
    elif example["prompt"]:
        content = {"prompt": example["prompt"], "completion": references[0]}
    else:
        content = {"instruction": example["instruction"], "input": example["input"], "output": references[0]}
    content = {name: value for name, value in content.items() if value or name in ("prompt", "completion")}
    if len(references) > 1:
        content["references"] = list(references)
    if teacher := extra_of(example).get("teacher"):
        content["teacher"] = teacher
    return {"id": example["id"], **content}


def one_for_each_answer(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A conversation as several examples, one for each answer that is learnt; the last keeps its id.

    The others' end in the number of the answer's turn, from 1. Earlier answers are context only.
    """
    turns = [*conversation_of(example), answer_of(example)]
    learnt = [place for place, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("train", True)]
    extra = extra_of(example)
    found = []
    for place in learnt:
        before = [{**turn, "train": False} if turn["role"] == "assistant" else turn for turn in turns[:place]]
        row = {"messages": [*before, turns[place]], "tools": extra.get("tools")}
        one = example_from_row(row, f"example {example['id']!r}")
        if "teacher" in extra:
            one["extra"] = json.dumps({**extra_of(one), "teacher": extra["teacher"]}, ensure_ascii=False)
        last = place == len(turns) - 1
        found.append({**one, "id": example["id"] if last else f"{example['id']}#{place + 1}"})
    return found
