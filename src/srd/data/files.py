"""Files of rows: the format by their content and ending, compression and encoding by their first bytes."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import importlib
import io
import itertools
import json
import lzma
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as parquet

from srd.base.errors import UserError, nearest
from srd.base.failures import first_line, reading
from srd.data.bad_rows import RowError
from srd.data.nested import rows_of

Row = dict[str, Any]
Line = tuple[int | str, Row | RowError]  # where a row starts, and the row, or why it cannot be read

HEAD = 4096  # bytes that tell what a file is
BATCH_ROWS = 1_000
SPACE = re.compile(r"\s*")
LISTS_OF_A_ROW = ("tools", "functions", "history", "references")  # hold objects that are no rows
DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        title: as it is said.
        endings: of names.
        read: the rows of a file.
        starts: what files begin with, for those whose content tells.
        unit: what rows are counted in; empty: lines.
    """

    title: str
    endings: tuple[str, ...]
    read: Callable[[Path], Iterator[Line]]
    starts: tuple[bytes, ...] = ()
    unit: str = ""


@dataclass(frozen=True)
class Compression:
    """A way in which files are compressed."""

    ending: str
    start: bytes
    open: Callable[[Path], Any]


def read_lines(path: Path, format: str = "auto") -> Iterator[Line]:
    """The rows of a file; one that cannot be read is an error in its place, where those behind it can.

    Args:
        path: the file.
        format: a name of `FORMATS`; `auto` goes by the content and the name's ending.

    Raises:
        UserError: no file, an unknown format, or content that is not of that format.
    """
    kind = format_of(path, format)
    with reading(path, FORMATS[kind].title):
        yield from FORMATS[kind].read(path)


def format_of(path: Path, format: str = "auto") -> str:
    """The name of a file's format.

    Raises:
        UserError: as `read_lines`.
    """
    if path.is_dir():
        raise UserError(f"{path}: this is a folder, expected a file.")
    if not path.is_file():
        raise UserError(f"{path}: this is a pipe or a device, expected a file. Write the rows to a file first.")
    if format != "auto":
        if format not in FORMATS:
            raise UserError(f"format: there is no format {format!r}; {nearest(format, FORMATS)}.")
        return format
    with reading(path, "a file of rows"), opened(path) as file:
        head = file.read(HEAD)
        called = ending(Path(_member(path)) if _compression(path) == "zip" else path)
        named = next((name for name, kind in FORMATS.items() if called in kind.endings), None)
        found = _by_content(path, head, named)
    if found is None:
        told = f"{path}: neither its ending {path.suffix!r} nor its content ({head[:20]!r}) says its format."
        if encoding_of(head) is None:
            raise UserError(f"{told} It is no text: write its rows as JSON lines or parquet.")
        raise UserError(
            f"{told} If it is one of {', '.join(FORMATS)}, let its name end so (a source of `data` may have `format` "
            "instead); if not, write its rows as JSON lines."
        )
    return found


def _by_content(path: Path, head: bytes, named: str | None) -> str | None:
    """What the content says, else the ending."""
    told = next((name for name, kind in FORMATS.items() if kind.starts and head.startswith(kind.starts)), None)
    if told is not None:
        return told
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: this is no data but a pointer of Git LFS to it. Fetch it with `git lfs pull`.")
    encoding = encoding_of(head)
    if encoding is None and named in TEXTS:
        told = f"{path}: this is no text but a binary file, which begins with {head[:20]!r}."
        raise UserError(f"{told} Write its rows as JSON lines or parquet.")
    start = head.decode(encoding or "latin-1", "replace").lstrip("\ufeff").lstrip()[:1]
    if encoding is None or named in DELIMITED or start not in ("[", "{"):
        return named
    return "json" if start == "[" else _lines_or_one_value(path, named)


def _lines_or_one_value(path: Path, named: str | None) -> str:
    """Whether a file that begins with an object has one on every line, or is one JSON text."""
    lines = (line for line in _text_lines(path) if line.strip())
    first = next(lines)
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return "jsonl" if named == "jsonl" and first.strip() != b"{" else "json"
    return "jsonl" if named == "jsonl" or next(lines, None) is not None else "json"


def ending(path: Path) -> str:
    """The ending of a file's name that says its format, that of its compression left out."""
    return Path(bare_name(path)).suffix.lower()


def bare_name(path: Path) -> str:
    """The name of a file without the ending of its compression."""
    endings = {kind.ending for kind in COMPRESSIONS.values()}
    return path.stem if path.suffix.lower() in endings else path.name


def is_data(path: Path) -> bool:
    """Whether a file's name says that rows are in it."""
    return any(ending(path) in kind.endings for kind in FORMATS.values()) and path.name not in ABOUT_DATA


def title_of(path: Path, format: str = "auto") -> str:
    """What a file is, as it is said: `JSON lines, gzip`."""
    title = FORMATS[format_of(path, format)].title  # first: to open a pipe is to wait for who writes into it
    compressed = _compression(path)
    return title + (f", {compressed}" if compressed else "")


# --------------------------------------------------------------------------------------------- bytes and characters


def opened(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed.

    Raises:
        UserError: it is an archive of several files of rows, or what decompresses it is not installed.
    """
    kind = _compression(path)
    return cast(BinaryIO, COMPRESSIONS[kind].open(path)) if kind else open(path, "rb")


def _compression(path: Path) -> str | None:
    with open(path, "rb") as file:
        start = file.read(6)
    return next((name for name, kind in COMPRESSIONS.items() if start.startswith(kind.start)), None)


def _member(path: Path) -> str:
    """The one file of rows in a zip archive."""
    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        inside = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if any(name.startswith("xl/") for name in inside):
        raise UserError(f"{path}: this is a spreadsheet of Excel. Save it as CSV.")
    rows = [name for name in inside if is_data(Path(name))] or inside
    if len(rows) != 1:
        some = f" ({', '.join(rows[:3])}{', …' * (len(rows) > 3)})" if rows else ""
        raise UserError(
            f"{path}: this is a zip archive of {len(rows)} files{some}. Unpack it, and name the files in it."
        )
    return rows[0]


def _open_zip(path: Path) -> Any:
    return zipfile.ZipFile(path).open(_member(path))


def _open_zstd(path: Path) -> Any:
    if pa.Codec.is_available("zstd"):
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    try:
        return importlib.import_module("zstandard").open(path, "rb")
    except ImportError as error:
        raise UserError(
            f"{path}: this is compressed with zstd, which the installed pyarrow cannot read. pip install zstandard"
        ) from error


def encoding_of(head: bytes) -> str | None:
    """How the text is encoded that begins so; None: it is no text."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" not in head:
        return "utf-8"
    # Latin letters in UTF-16 have a zero in every second byte.
    for first, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
        zeros, others = head[first::2], head[1 - first :: 2]
        if zeros.count(0) > len(zeros) // 2 and not others.count(0):
            return encoding
    return None


def _whole_text(path: Path) -> str:
    with opened(path) as file:
        content = file.read()
    encoding = encoding_of(content[:HEAD]) or "utf-8"
    return _decoded(content.removeprefix(codecs.BOM_UTF8), encoding, str(path))


def _text_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text as UTF-8, without a byte order mark."""
    with opened(path) as file:
        encoding = encoding_of(file.read(HEAD))
    with opened(path) as file:
        if encoding in (None, "utf-8"):
            yield from (line.removeprefix(codecs.BOM_UTF8) if not number else line for number, line in enumerate(file))
        else:
            yield from (line.encode() for line in io.TextIOWrapper(file, encoding=encoding, newline="\n"))


def _decoded(content: bytes, encoding: str, place: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not {encoding.upper()} ({error.reason} at byte {error.start}). {CONVERT}") from error


CONVERT = "Convert the file, for example with `iconv -f CP1252 -t UTF-8`, if a program on Windows has written it."


# --------------------------------------------------------------------------------------------------------------- JSON


def _each_once(pairs: list[tuple[str, Any]]) -> Row:
    """The object of these keys and values; Python's own reader lets the last of two equal keys win."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"the key {twice!r} is there twice: remove one")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_each_once)
SKIPPER = json.JSONDecoder(parse_int=str)  # reads past an object that is well formed and yet of no use


def _read_jsonl(path: Path) -> Iterator[Line]:
    for line, content in enumerate(_text_lines(path), start=1):
        if content.strip():
            yield line, _row_in(content, f"{path}:{line}")


def _row_in(content: bytes, place: str) -> Row | RowError:
    """The object in a line of JSON lines."""
    text = content.decode("utf-8", "replace")
    try:
        return _checked_row(DECODER.decode(content.decode("utf-8")), place)
    except UnicodeDecodeError as error:
        return RowError(f"{place}: not UTF-8 ({error.reason} at byte {error.start}). {CONVERT}", text)
    except json.JSONDecodeError as error:
        return RowError(
            f"{place}: not valid JSON ({error.msg}, column {error.colno}): {_shown(text)}. "
            "In a JSONL file every line is one object.",
            text,
        )
    except (ValueError, RecursionError) as error:
        return RowError(f"{place}: not usable JSON: {_json_reason(error)}.", text)


def _json_reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it holds a number of thousands of digits" if "digits" in str(error) else str(error)


def _checked_row(row: Any, place: str) -> Row | RowError:
    if isinstance(row, dict | RowError):
        return row
    text = json.dumps(row)
    return RowError(f"{place}: expected an object for the row, found {type(row).__name__} {_shown(text)}.", text)


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _read_json(path: Path) -> Iterator[Line]:
    """Rows in an array, in the one list of an object, or one after the other."""
    text = _Json(path, _whole_text(path))
    if text.next == "{":
        lists = text.lists()
        if len(lists) > 1:
            raise UserError(
                f"{path}: this holds several lists of rows ({', '.join(lists)}). Write each to a file of its own."
            )
        if not lists:
            yield from text.values()
            return
        text.position = next(iter(lists.values()))
        yield from text.elements()
    elif text.next == "[":
        yield from text.elements()
        if text.next:
            raise UserError(f"{path}: there is more after the end of the array: {_shown(text.rest)}.")
    else:
        raise UserError(
            f"{path}: expected a JSON array of rows, found {_shown(text.rest) if text.next else 'nothing'}."
        )


class _Json:
    """A JSON text that is read value by value, so that the rows of a large array do not all exist at once."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.position = self._skipped(0)
        self._line, self._counted = 1, 0
        newline = text.find("\n", self.position)  # none but at the end: as programs write it, lines tell no rows apart
        self.flat = newline < 0 or self._skipped(newline) == len(text)

    def _skipped(self, position: int) -> int:
        match = SPACE.match(self.text, position)
        assert match is not None
        return match.end()

    @property
    def next(self) -> str:
        """The next character; empty at the end."""
        return self.text[self.position : self.position + 1]

    @property
    def rest(self) -> str:
        """What has not been read, as far as a message shows it."""
        return self.text[self.position : self.position + 200]

    @property
    def line(self) -> int:
        """Where the next character stands."""
        if self.position < self._counted:
            self._line, self._counted = 1, 0
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def value(self, decoder: json.JSONDecoder = DECODER) -> Any:
        """The next value; an error in its place where it is of no use, though what follows can be read."""
        try:
            value, end = self._decoded(decoder)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno})."
            ) from error
        except RecursionError as error:
            raise UserError(f"{self.path}:{self.line}: not usable JSON: {_json_reason(error)}.") from error
        self.position = self._skipped(end)
        return value

    def _decoded(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """The next value and where it ends."""
        try:
            return decoder.raw_decode(self.text, self.position)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            _, end = SKIPPER.raw_decode(self.text, self.position)
            reason = f"{self.path}:{self.line}: not usable JSON: {_json_reason(error)}."
            return RowError(reason, self.text[self.position : end]), end

    def take(self, *marks: str, behind: str) -> str:
        """One of these characters, which must be next."""
        found = self.next
        if found not in marks or not found:
            expected = " or ".join(map(repr, marks))
            raise UserError(
                f"{self.path}:{self.line}: expected {expected} {behind}, found {found or 'the end of the file'!r}."
            )
        self.position = self._skipped(self.position + 1)
        return found

    def elements(self) -> Iterator[Line]:
        """The rows of the array that is next."""
        self.take("[", behind="before the rows")
        closed, number = self.next == "]", itertools.count(1)
        while not closed:
            line = f"1 (row {next(number)})" if self.flat else self.line
            yield line, _checked_row(self.value(), f"{self.path}:{line}")
            closed = self.take(",", "]", behind="after a row") == "]"
            if closed:
                return
        self.take("]", behind="after the rows")

    def values(self) -> Iterator[Line]:
        """All values from here to the end, each a row."""
        while self.next:
            line = self.line
            yield line, _checked_row(self.value(), f"{self.path}:{line}")

    def lists(self) -> dict[str, int]:
        """Where the lists of rows in the object begin that is all of the text; the place does not move.

        A list of turns, which have roles, makes the object a row itself.
        """
        start, found, is_row = self.position, {}, False
        self.take("{", behind="before the lists")
        closed = self.next == "}"
        while not closed:
            name = str(self.value())
            self.take(":", behind="after a name")
            place, value = self.position, self.value(SKIPPER)
            if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
                found.update({name: place} if name not in LISTS_OF_A_ROW else {})
                is_row = is_row or any({"role", "from"} & row.keys() for row in value)
            closed = self.take(",", "}", behind="after a value") == "}"
        alone, self.position = not self.next, start
        return found if alone and not is_row else {}


# ------------------------------------------------------------------------------------------------------------- tables


def _read_csv(path: Path) -> Iterator[Line]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with opened(path) as binary:
        encoding = encoding_of(binary.read(HEAD)) or "utf-8"
    line = 1  # where the next row starts
    with opened(path) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="")
        try:
            header = text.readline()
            delimiter = max(DELIMITERS, key=header.count)
            reader = csv.DictReader(itertools.chain([header], text), strict=True, delimiter=delimiter)
            names = list(reader.fieldnames or [])
            if len(set(names)) < len(names):
                twice = next(name for place, name in enumerate(names) if name in names[:place])
                raise UserError(f"{path}:1: the column {twice!r} is there twice. Rename or remove one.")
            line = reader.line_num + 1
            for row in reader:
                uneven = None in row or None in row.values()
                yield line, _uneven(row, names, f"{path}:{line}") if uneven else row
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}:{line}: not valid CSV ({error}).") from error
        except UnicodeDecodeError as error:
            line = _undecodable(path) if encoding == "utf-8" else line  # what was read ahead may be far behind it
            raise UserError(f"{path}:{line}: not {encoding.upper()} ({error.reason}). {CONVERT}") from error


def _undecodable(path: Path) -> int:
    """The first line that is no UTF-8, in a file that has one."""
    for number, content in enumerate(_text_lines(path), start=1):
        if content.decode("utf-8", "replace").encode() != content:
            return number
    return 1


def _uneven(row: Row, names: list[str], place: str) -> RowError:
    return RowError(
        f"{place}: the row has not as many values as the first line has names ({len(names)}: {', '.join(names)}). "
        "Values are separated by commas, semicolons, tabs or bars; quote those that hold one, or a line break.",
        ", ".join(str(value) for value in row.values()),
    )


def _read_parquet(path: Path) -> Iterator[Line]:
    return _numbered(path, "parquet", lambda source: parquet.ParquetFile(source).iter_batches(batch_size=BATCH_ROWS))


def _read_arrow(path: Path) -> Iterator[Line]:
    return _numbered(path, "Arrow", _arrow_batches)


def _arrow_batches(source: Any) -> Iterator[pa.RecordBatch]:
    if source.read(len(ARROW_FILE)) == ARROW_FILE:
        file = pa.ipc.open_file(source)
        yield from map(file.get_batch, range(file.num_record_batches))
    else:
        source.seek(0)
        yield from pa.ipc.open_stream(source)


def _numbered(path: Path, title: str, batches: Callable[[Any], Iterator[pa.RecordBatch]]) -> Iterator[Line]:
    """The rows of batches, some at a time."""
    number = itertools.count(1)
    with opened(path) as file:
        # A table is read from its end: what is compressed as a whole has to be unpacked as a whole.
        source = pa.BufferReader(file.read()) if _compression(path) else pa.OSFile(str(path))
        try:
            for batch in batches(source):
                for start in range(0, len(batch), BATCH_ROWS):
                    yield from ((next(number), row) for row in rows_of(batch.slice(start, BATCH_ROWS)))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a readable {title} file ({first_line(error)}).") from error


ARROW_FILE = b"ARROW1"
DELIMITED = ("csv", "tsv")
TEXTS = ("jsonl", "json", *DELIMITED)
#: Files that tell of the data and hold none of it.
ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
BYTE_ORDER_MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8",
}  # fmt: skip
COMPRESSIONS: Mapping[str, Compression] = {
    "gzip": Compression(".gz", b"\x1f\x8b", gzip.GzipFile),
    "bzip2": Compression(".bz2", b"BZh", bz2.BZ2File),
    "xz": Compression(".xz", b"\xfd7zXZ\0", lzma.LZMAFile),
    "zip": Compression(".zip", b"PK\x03\x04", _open_zip),
    "zstd": Compression(".zst", b"\x28\xb5\x2f\xfd", _open_zstd),
}
FORMATS: Mapping[str, Format] = {
    "jsonl": Format("JSON lines", (".jsonl", ".ndjson", ".jl"), _read_jsonl),
    "json": Format("JSON", (".json",), _read_json),
    "csv": Format("CSV", (".csv",), _read_csv),
    "tsv": Format("CSV with tabs", (".tsv", ".tab"), _read_csv),
    "parquet": Format("parquet", (".parquet", ".pq"), _read_parquet, (b"PAR1",), "row"),
    "arrow": Format("Arrow", (".arrow", ".feather", ".ipc"), _read_arrow, (ARROW_FILE, b"\xff\xff\xff\xff"), "row"),
}
