"""Where rows come from: files of four formats, the Hugging Face hub, and data sets known by name that are handed in."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
from datasets import Dataset, DatasetDict

from srd.base.console import progress_bar
from srd.base.errors import UserError, nearest
from srd.base.failures import first_line, reading
from srd.data.bad_rows import BadRows, Check, RowError, without_refused
from srd.data.examples import ROW_FIELDS, ExampleBuilder

if TYPE_CHECKING:
    from srd.data.settings import SourceConfig

Row = dict[str, Any]
Line = tuple[int, Row | RowError]
PlacedRow = tuple[str, Row | RowError]  # where the row stands, and the row, or why it cannot be read

log = logging.getLogger(__name__)

SHOWN_ROWS = 1_000  # rows between two looks at the progress bar

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
# What the hub's client raises for a network that is down, an unknown name, configuration or split, a gated or
# script-based data set.
HUB_ERRORS = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
SPLIT_WORDS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}


class Home(Protocol):
    """Where a published data set is on the hub."""

    @property
    def full_name(self) -> str:
        """``owner/name`` or ``owner/name:configuration``."""

    @property
    def revision(self) -> str | None:
        """Which one of it; None: the newest."""


class Known(Protocol):
    """A data set known by name: where it is, and how its rows become examples. `srd.tasks` has some."""

    @property
    def name(self) -> str:
        """As in a recipe."""

    @property
    def home(self) -> Home | None:
        """None: it is made on the spot."""

    def in_direction(self, language_pair: str | None) -> Known:
        """The same data set for a pair of languages, where it translates."""

    def make(self, seed: int) -> DatasetDict | None:
        """The splits of a data set that is made on the spot; None: it is read."""

    def convert(self, row: Row, place: str) -> Mapping[str, Any] | None:
        """Turn a published row into one of a shape that `srd.data.examples` accepts; None: it is known to be empty."""

    def split_of(self, number: int, row: Row, place: str) -> str | None:
        """The split of a row by its number (from 0) and content, where all are published in one piece."""


# ---------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class _Rules:
    """What one source is read with.

    Attributes:
        source: what is read.
        named: the data set whose format it has, if it is one known by name.
        bad: takes the rows that cannot become examples.
        check: says which examples cannot be used.
    """

    source: SourceConfig
    named: Known | None
    bad: BadRows
    check: Check | None


def load_source(
    source: SourceConfig,
    *,
    known: Mapping[str, Known] = MappingProxyType({}),
    seed: int = 0,
    bad: BadRows | None = None,
    check: Check | None = None,
) -> DatasetDict | Dataset:
    """Load examples from a file, several files, a folder, the hub, or a data set known by name.

    Args:
        source: `path` may be a file, a list of files, a folder whose file names say the split (`train.jsonl`,
            `gsm8k_test.jsonl`), a hub name or the name of a data set. With `dataset` and `path` the files are
            in that data set's original format. `limit` counts per split.
        known: the data sets known by name.
        seed: splits data sets that are made on the spot.
        bad: takes the rows that cannot become examples; none: they are an error.
        check: says which examples cannot be used.

    Returns:
        One dataset for plain files and where `split` is given, else one per split.

    Raises:
        UserError: no such file, hub data set, split or column; an unreachable hub; rows that are no examples.
    """
    own, bad = bad is None, bad or BadRows()
    named, paths = _resolve(source, known)
    if named is not None and named.home is None:
        if paths:
            raise UserError(
                f"dataset {named.name!r} is made from the installed Python and reads no file: remove path {paths}."
            )
        made = named.make(seed)
        assert made is not None
        splits = {name: _checked(rows, check, bad) for name, rows in _limited(made, source.limit).items()}
        found = _choose_split(splits, source.split, f"dataset {named.name!r}")
    else:
        named = named.in_direction(source.language_pair or None) if named else None
        rules = _Rules(source, named, bad, check)
        found = _load_files(rules, paths) if paths else _load_hub(rules, sorted(known))
    if own:
        bad.settle()
    return found


def _checked(rows: Dataset, check: Check | None, bad: BadRows) -> Dataset:
    """The examples that can be used."""
    examples = list(rows)
    kept = without_refused(examples, [f"example {example['id']!r}" for example in examples], check, bad)
    return rows if len(kept) == len(rows) else rows.select(kept)


def _resolve(source: SourceConfig, known: Mapping[str, Known]) -> tuple[Known | None, list[Path]]:
    """Find out what is meant: the named data set, if any, and the local files; neither for a hub name."""
    name = source.data_set(known)
    texts = [text for text in source.paths if source.dataset or text != name]
    if name is not None and name not in known:
        raise UserError(f"dataset: there is no data set {name!r}; {nearest(name, known)}.")
    if name is None and len(texts) == 1 and _is_hub_name(texts[0]):
        return None, []
    if name is None and not texts:
        raise UserError("the data source is empty: give `path` (files or a hub name) or `dataset`.")
    paths = [_existing(text, sorted(known)) for text in texts]
    return known[name] if name else None, paths


def _is_hub_name(text: str) -> bool:
    path = Path(text)
    is_file = path.exists() or path.suffix in FORMATS or path.parent.exists() or text.startswith((".", "~"))
    return not is_file and HUB_NAME.fullmatch(text) is not None


def _existing(text: str, known: Sequence[str] = ()) -> Path:
    path = Path(text).expanduser()
    if path.exists():
        return path
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"there is no file {text!r}, and no folder {str(folder)!r}. {_remedy(known)}")
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    close = [str(folder / name) for name in get_close_matches(path.name, names, n=3, cutoff=0.4)]
    close += get_close_matches(text, known, n=1)
    hint = f"Near it are: {', '.join(close)}. " if close else ""
    raise UserError(f"there is no file {text!r}. {hint}{_remedy(known)}")


def _remedy(known: Sequence[str]) -> str:
    if not known:
        return "Give an existing file."
    return f"Give an existing file, a hub name 'owner/name', or one of the data sets {', '.join(known)}."


def _load_files(rules: _Rules, paths: Sequence[Path]) -> DatasetDict | Dataset:
    source, named = rules.source, rules.named
    origin = ", ".join(map(str, paths))
    prefix = named.name if named else paths[0].stem
    is_folder = len(paths) == 1 and paths[0].is_dir()
    files = _split_files(paths[0]) if is_folder else {"": list(paths)}
    built: dict[str, Dataset] = {}
    for split, group in files.items():
        rows = itertools.chain.from_iterable(_placed_rows(path, source.format) for path in group)
        built.update(_build(rules, rows, split, origin, prefix))
    return _choose_split(built, source.split, origin)


def _split_files(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        words = re.split(r"[^a-z]+", path.stem.lower())
        splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if path.suffix in FORMATS and len(splits) == 1:
            files.setdefault(splits.pop(), []).append(path)
    if not files:
        raise UserError(
            f"{folder}: this folder has no data file whose name says its split, such as train.jsonl or "
            "my_test.csv. Name the files that way, or give the files themselves as a list."
        )
    return files


def _load_hub(rules: _Rules, known: Sequence[str]) -> DatasetDict | Dataset:
    source, named = rules.source, rules.named
    home = named.home if named else None
    name = home.full_name if home else str(source.path)
    match = HUB_NAME.fullmatch(name)
    assert match is not None, name
    repository = match["repository"]
    try:
        # With a limit nothing but the first rows is fetched.
        published = datasets.load_dataset(
            repository,
            match["config"],
            revision=home.revision if home else None,
            streaming=source.limit is not None,
        )
    except HUB_ERRORS as error:
        dataset = f", with `dataset: {named.name}` for its original format" if named else ""
        raise UserError(
            f"could not load {name!r} from the hub: {str(error).splitlines()[0] if str(error) else error!r}. "
            "Check the name and the network, or download the data elsewhere and give its files as `path`"
            f"{dataset}. If no file or hub data set was meant: {_remedy(known)}"
        ) from error
    # A data set that the hub has in one piece is divided by our own rule; otherwise the hub's splits hold.
    names = [str(split) for split in published]
    wanted = [source.split] if source.split and source.split in names and len(names) > 1 else names
    built: dict[str, Dataset] = {}
    for split in wanted:
        rows = ((f"{name} {split}: row {number}", row) for number, row in enumerate(published[split], start=1))
        prefix = named.name if named else str(repository).partition("/")[2]
        built.update(_build(rules, rows, "" if len(names) == 1 else split, name, prefix))
    if "" in built:
        built = {names[0]: built[""]}
    return _choose_split(built, source.split, name)


def _build(rules: _Rules, rows: Iterable[PlacedRow], split: str, origin: str, prefix: str) -> dict[str, Dataset]:
    """Turn the rows of one split into examples; "" is data in one piece, which a data set may divide."""
    source, named, bad = rules.source, rules.named, rules.bad
    _check_columns(source.columns, named)
    builders: dict[str, ExampleBuilder] = {}
    skipped = 0
    for number, (place, row) in enumerate(_counted(rows)):
        try:
            if isinstance(row, RowError):
                raise row
            renamed = _renamed(row, source.columns, place)
            divided = named.split_of(number, renamed, place) if named and not split else None
            converted = named.convert(renamed, place) if named else renamed
        except UserError as error:
            bad.add(place, row, error)
            continue
        if converted is None:
            skipped += 1
            continue
        target = split if divided is None else divided
        if target not in builders:
            builders[target] = ExampleBuilder(origin, prefix, bad, rules.check)
        if not builders[target].has(source.limit):
            builders[target].add(converted, place)
        elif divided is None:
            break
    if skipped:
        log.warning("%s: %d rows without a text were left out", origin, skipped)
    builders = builders or {split: ExampleBuilder(origin, prefix, bad)}
    return {name: builder.finish() for name, builder in builders.items()}


def _counted(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The rows, with a progress bar."""
    with progress_bar("rows read") as update:
        for number, row in enumerate(rows):
            if number % SHOWN_ROWS == SHOWN_ROWS - 1:
                update(number + 1, None)
            yield row


def _check_columns(columns: Mapping[str, str], named: Known | None) -> None:
    for ours in columns:
        if named is None and ours not in ROW_FIELDS:
            raise UserError(f"columns: there is no column {ours!r}; {nearest(ours, ROW_FIELDS)}.")


def _renamed(row: Row, columns: Mapping[str, str], place: str) -> Row:
    """Give a row our column names; columns that are not named stay as they are."""
    for ours, theirs in columns.items():
        if theirs not in row:
            raise UserError(
                f"{place}: columns.{ours}: there is no column {theirs!r}; {nearest(theirs, map(str, row))}."
            )
    others = {name: value for name, value in row.items() if name not in columns.values()}
    return {**others, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _limited(splits: DatasetDict, limit: int | None) -> DatasetDict:
    if limit is None:
        return splits
    return DatasetDict({name: split.select(range(min(limit, len(split)))) for name, split in splits.items()})


def _choose_split(splits: Mapping[str, Dataset], split: str | None, origin: str) -> DatasetDict | Dataset:
    if list(splits) == [""]:
        if split:
            raise UserError(f"{origin}: these rows have no splits, but split {split!r} is asked for. Remove `split`.")
        return splits[""]
    if split is None:
        return DatasetDict(splits)
    if split not in splits:
        raise UserError(f"{origin}: there is no split {split!r}; {nearest(split, splits)}.")
    return splits[split]


# ------------------------------------------------------------------------------------------------------ files


def read_rows(path: str | Path, format: str = "auto") -> Iterator[tuple[int, Row]]:
    """Read the rows of a file one by one, whatever its format.

    Args:
        path: the file.
        format: `jsonl`, `json` (one array), `csv` (first line: names) or `parquet`; `auto` goes by the name's
            ending, and takes a `.json` file that does not start with `[` as JSONL.

    Yields:
        The line the row starts in (parquet: its number, from 1), and the row. CSV values are text.

    Raises:
        UserError: no such file, an unknown format, or content that is not of that format, with file and line.
    """
    for line, row in _lines(_existing(str(path)), format):
        if isinstance(row, RowError):
            raise row
        yield line, row


def _placed_rows(path: Path, format: str) -> Iterator[PlacedRow]:
    unit = " row " if _file_format(path, format) == "parquet" else ""
    for line, row in _lines(path, format):
        yield f"{path}:{unit}{line}", row


def _lines(path: Path, format: str) -> Iterator[Line]:
    """The rows of a file; one that cannot be read is an error in its place, where those behind it can."""
    if path.is_dir():
        raise UserError(f"{path}: this is a folder, expected a file.")
    if not path.is_file():
        raise UserError(f"{path}: this is a pipe or a device, expected a file. Write the rows to a file first.")
    kind = _file_format(path, format)
    with reading(path, kind):
        yield from READERS[kind](path)


def _file_format(path: Path, format: str) -> str:
    if format != "auto":
        if format not in READERS:
            raise UserError(f"format: there is no format {format!r}; {nearest(format, READERS)}.")
        return format
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"{path}: the ending {path.suffix!r} does not say the format. Set `format` to one of {', '.join(READERS)}."
        )
    found = FORMATS[path.suffix.lower()]
    if found == "json" and path.is_file():
        with open(path, "rb") as file:
            start = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()
        return "json" if start[:1] in (b"[", b"") else "jsonl"
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> Row:
    """The object of these keys and values; Python's own reader lets the last of two equal keys win."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"the key {twice!r} is there twice: remove one")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_each_once)


def _json_reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it holds a number of thousands of digits" if "digits" in str(error) else str(error)


def _read_jsonl(path: Path) -> Iterator[Line]:
    with open(path, "rb") as file:
        for line, content in enumerate(file, start=1):
            content = content.removeprefix(b"\xef\xbb\xbf") if line == 1 else content
            if content.strip():
                yield line, _decoded_row(content, f"{path}:{line}")


def _decoded_row(content: bytes, place: str) -> Row | RowError:
    """The object in a line of JSON lines."""
    text = content.decode("utf-8", "replace")
    try:
        return _checked_row(DECODER.decode(content.decode("utf-8")), place)
    except UnicodeDecodeError as error:
        return RowError(f"{place}: not UTF-8 ({error.reason} at byte {error.start}). Convert the file.", text)
    except json.JSONDecodeError as error:
        return RowError(
            f"{place}: not valid JSON ({error.msg} at column {error.colno}): {_shown(text)}. "
            "In a JSONL file every line is one object.",
            text,
        )
    except (ValueError, RecursionError) as error:
        return RowError(f"{place}: not usable JSON: {_json_reason(error)}.", text)


def _read_json(path: Path) -> Iterator[Line]:
    """Decode one element at a time, so that the rows of a large array do not all exist at once."""
    text = _decoded(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), str(path))
    space = re.compile(r"\s*")
    position = _skip(space, text, 0)
    if not text[position : position + 1] == "[":
        raise UserError(f"{path}: expected a JSON array of rows, found {_shown(text) if text.strip() else 'nothing'}.")
    position = _skip(space, text, position + 1)
    line, counted, closing = 1, 0, text[position : position + 1] == "]"
    position = _skip(space, text, position + 1) if closing else position
    while not closing:
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, position = DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg} at column {error.colno}).") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{line}: not usable JSON: {_json_reason(error)}.") from error
        yield line, _checked_row(row, f"{path}:{line}")
        position = _skip(space, text, position)
        mark = text[position : position + 1]
        if mark not in (",", "]") or not mark:
            line += text.count("\n", counted, position)
            raise UserError(f"{path}:{line}: expected ',' or ']' after a row, found {mark or 'the end of the file'!r}.")
        closing = mark == "]"
        position = _skip(space, text, position + 1)
    if position != len(text):
        raise UserError(f"{path}: there is more after the end of the array: {_shown(text[position:])}.")


def _skip(space: re.Pattern[str], text: str, position: int) -> int:
    match = space.match(text, position)
    assert match is not None
    return match.end()


def _read_csv(path: Path) -> Iterator[Line]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        start = 2
        try:
            names = list(reader.fieldnames or [])
            if len(set(names)) < len(names):
                twice = next(name for place, name in enumerate(names) if name in names[:place])
                raise UserError(f"{path}:1: the column {twice!r} is there twice. Rename or remove one.")
            for row in reader:
                uneven = None in row or None in row.values()
                yield start, _uneven(row, names, f"{path}:{start}") if uneven else row
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{reader.line_num + 1}: not UTF-8 ({error.reason}). Convert the file.") from error


def _uneven(row: Row, names: list[str], place: str) -> RowError:
    return RowError(
        f"{place}: the row has not as many values as the first line has names ({len(names)}: {', '.join(names)}). "
        "Quote values that hold commas or line breaks.",
        ", ".join(str(value) for value in row.values()),
    )


def _read_parquet(path: Path) -> Iterator[Line]:
    try:
        with parquet.ParquetFile(path) as file:
            number = itertools.count(1)
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    yield next(number), row
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({first_line(error)}).") from error


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 ({error.reason} at byte {error.start}). Convert the file.") from error


def _checked_row(row: Any, place: str) -> Row | RowError:
    if isinstance(row, dict):
        return row
    text = json.dumps(row)
    return RowError(f"{place}: expected an object for the row, found {type(row).__name__} {_shown(text)}.", text)


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 80 else text[:77] + "...")


READERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
