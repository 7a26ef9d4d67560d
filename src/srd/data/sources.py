"""Where rows come from: files, folders, the Hugging Face hub, and data sets known by name that are handed in."""

from __future__ import annotations

import glob
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import datasets
from datasets import Dataset, DatasetDict
from pyarrow import csv

from srd.base.console import progress_bar
from srd.base.errors import UserError, nearest
from srd.base.failures import reading
from srd.base.text import many
from srd.data.bad_rows import BadRows, Check, Owner, RowError, without_refused
from srd.data.examples import ExampleBuilder
from srd.data.files import DELIMITED, FORMATS, Row, bare_name, format_of, read_lines, title_of
from srd.data.folders import Found, by_name, files_of, is_saved, matching
from srd.data.rows import row_dicts
from srd.data.settings import HUB_NAME, is_hub_name
from srd.data.shapes import Columns

if TYPE_CHECKING:
    from srd.data.settings import SourceConfig

AnyRow = Mapping[str, Any]
PlacedRow = tuple[str, AnyRow | RowError]  # where the row stands, and the row, or why it cannot be read

log = logging.getLogger(__name__)

SHOWN_ROWS = 1_000  # rows between two looks at the progress bar

NO_VALUES = frozenset(csv.ConvertOptions().null_values)  # what pandas, R and spreadsheets write for none

# What the hub's client raises for a network that is down, an unknown name, configuration or split, a gated or
# script-based data set.
HUB_ERRORS = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)


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
        """None: it is made on the spot, or read from a file that is given."""

    @property
    def made(self) -> bool:
        """Whether it is made on the spot."""

    def in_direction(self, language_pair: str | None) -> Known:
        """The same data set for a pair of languages, where it translates."""

    def make(self, seed: int) -> DatasetDict:
        """The splits of a data set that is made on the spot."""

    def convert(self, row: AnyRow, place: str) -> Mapping[str, Any] | None:
        """Turn a published row into one of a shape that `srd.data.examples` accepts; None: it is known to be empty."""

    def split_of(self, number: int, row: AnyRow, place: str) -> str | None:
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
        owner: says whose a training row is.
        shapes: how many rows have which, as far as they have been read.
    """

    source: SourceConfig
    named: Known | None
    bad: BadRows
    check: Check | None
    owner: Owner | None = None
    shapes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Rows:
    """Rows that have been found and not been read.

    Attributes:
        splits: what reads each; "" where nothing says which split it is.
        origin: where they are, for messages.
        prefix: begins the ids that are made up.
        title: what they are, in words.
    """

    splits: Mapping[str, Callable[[], Iterable[PlacedRow]]]
    origin: str
    prefix: str
    title: str


def load_source(
    source: SourceConfig,
    *,
    known: Mapping[str, Known] = MappingProxyType({}),
    seed: int = 0,
    bad: BadRows | None = None,
    check: Check | None = None,
    owner: Owner | None = None,
) -> DatasetDict | Dataset:
    """Load examples from a file, several files, a folder, the hub, or a data set known by name.

    Args:
        source: `path` may be a file, a list of files, a pattern, a folder (whose README or file names say the
            splits, or that `save_to_disk` has written), a hub name or the name of a data set. With `dataset` and
            `path` the files are in that data set's original format. `limit` counts per split.
        known: the data sets known by name.
        seed: splits data sets that are made on the spot.
        bad: takes the rows that cannot become examples; none: they are an error.
        check: says which examples cannot be used.
        owner: says which teacher a training row has, from the row as it is and its place.

    Returns:
        One dataset for plain files and where `split` is given, else one per split.

    Raises:
        UserError: no such file, hub data set, split or column; an unreachable hub; rows that are no examples.
    """
    own, bad = bad is None, bad or BadRows()
    named, paths = _resolve(source, known)
    if named is not None and named.made:
        if paths:
            raise UserError(f"dataset {named.name!r} is made on the spot and reads no file: remove path {paths}.")
        made = _limited(named.make(seed), source.limit)
        splits = {name: _checked(rows, check, bad) for name, rows in made.items()}
        found = _choose_split(splits, source.split, f"dataset {named.name!r}")
    else:
        if named is not None and named.home is None and not paths:
            raise UserError(
                f"dataset {named.name!r} is read from a file: give its path, as in "
                f"`{{dataset: {named.name}, path: {named.name}.jsonl}}`."
            )
        named = named.in_direction(source.language_pair or None) if named else None
        rows = _files(source, named, paths) if paths else _hub(source, named, sorted(known))
        found = _read(_Rules(source, named, bad, check, owner), rows)
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
    if name is None and len(texts) == 1 and is_hub_name(texts[0]):
        return None, []
    if name is None and not texts:
        raise UserError("the data source is empty: give `path` (files or a hub name) or `dataset`.")
    paths = list(dict.fromkeys(path for text in texts for path in _existing(text, sorted(known))))
    return known[name] if name else None, paths


def _existing(text: str, known: Sequence[str] = ()) -> list[Path]:
    """The file or folder of this name, or the files that a pattern matches."""
    path = Path(text).expanduser()
    if path.exists():
        return [path]
    if path.is_symlink():
        raise UserError(f"{text}: this link leads to {path.readlink()}, where nothing is. {_remedy(())}")
    if glob.has_magic(text):
        found = matching(path.parent, path.name)
        if not found:
            raise UserError(f"no file matches {text!r}. `**` stands for folders in folders. {_remedy(())}")
        return found
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


# --------------------------------------------------------------------------------------------------- what there is


def _files(source: SourceConfig, named: Known | None, paths: Sequence[Path]) -> _Rows:
    """The rows of files and folders."""
    folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    if folder is None and (below := next((path for path in paths if path.is_dir()), None)) is not None:
        raise UserError(
            f"{below}: a folder among several paths. Name the files in it, as in {below / '**' / '*.jsonl'}."
        )
    origin = ", ".join(source.paths)
    if source.config is not None and folder is None:
        raise UserError(
            f"{origin}: config ({source.config!r}) is for folders and the hub, and this is neither. Remove it."
        )
    if folder is not None and is_saved(folder):
        return _saved(folder, source.config, named)
    if folder is not None:
        found, prefix = files_of(folder, source.config), folder.stem
    elif any(glob.has_magic(text) and not Path(text).expanduser().exists() for text in source.paths):
        found, prefix = by_name(paths, _root(source.paths)), paths[0].absolute().parent.name
    else:
        found, prefix = Found({"": list(paths)}), Path(bare_name(paths[0])).stem
    if found.left_out:
        some = ", ".join(path.name for path in found.left_out[:3])
        log.warning(
            "%s: %s left out, where the name says no split and those of others do: %s%s. To read them, too, "
            "name the files.", origin, many(len(found.left_out), "file"), some, ", …" * (len(found.left_out) > 3),
        )  # fmt: skip
    splits = {split: _reader(group, source.format) for split, group in found.splits.items()}
    titles = Counter(title_of(path, source.format) for group in found.splits.values() for path in group)
    total = sum(titles.values())
    title = ", ".join(title if total == 1 else f"{count} × {title}" for title, count in titles.items())
    chosen = f"configuration {source.config!r}, " if source.config else ""
    return _Rows(splits, origin, named.name if named else prefix, chosen + title)


def _root(patterns: Sequence[str]) -> Path:
    """The folder that patterns look in: what their paths have in common before anything stands for more than itself."""
    fixed = (itertools.takewhile(lambda part: not glob.has_magic(part), Path(text).parts[:-1]) for text in patterns)
    together = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*fixed, strict=False))
    return Path(*(parts[0] for parts in together)).expanduser()


def _reader(paths: Sequence[Path], format: str) -> Callable[[], Iterable[PlacedRow]]:
    return lambda: itertools.chain.from_iterable(_placed_rows(path, format) for path in paths)


def _placed_rows(path: Path, format: str) -> Iterator[PlacedRow]:
    unit = FORMATS[format_of(path, format)].unit
    for line, row in read_lines(path, format):
        yield f"{path}:{f' {unit} ' if unit else ''}{line}", row


def _saved(folder: Path, config: str | None, named: Known | None) -> _Rows:
    """The rows of a data set that the library has saved."""
    if config is not None:
        raise UserError(
            f"{folder}: this was written by save_to_disk and has no configurations: remove config {config!r}."
        )
    with reading(folder, "what save_to_disk writes"):
        loaded = datasets.load_from_disk(str(folder))
    parts = {str(name): rows for name, rows in (loaded.items() if isinstance(loaded, DatasetDict) else [("", loaded)])}
    splits = {
        name: _placed(f"{folder}{f' {name}' if name else ''}", row_dicts(rows, "rows")) for name, rows in parts.items()
    }
    return _Rows(splits, str(folder), named.name if named else folder.stem, "written by save_to_disk")


def _placed(origin: str, rows: Iterable[AnyRow]) -> Callable[[], Iterable[PlacedRow]]:
    return lambda: ((f"{origin}: row {number}", row) for number, row in enumerate(rows, start=1))


def _hub(source: SourceConfig, named: Known | None, known: Sequence[str]) -> _Rows:
    """The rows of a data set on the hub."""
    home = named.home if named else None
    name = home.full_name if home else str(source.path)
    match = HUB_NAME.fullmatch(name)
    assert match is not None, name
    repository, config = match["repository"], match["config"]
    if source.config is not None and config not in (None, source.config):
        raise UserError(
            f"{name} names the configuration {config!r}, and config another: {source.config!r}. Remove one."
        )
    try:
        # With a limit nothing but the first rows is fetched.
        published = datasets.load_dataset(
            repository,
            source.config or config,
            revision=home.revision if home else None,
            streaming=source.limit is not None,
        )
    except HUB_ERRORS as error:
        dataset = f", with `dataset: {named.name}` for its original format" if named else ""
        raise UserError(
            f"could not load {name!r} from the hub: {str(error).splitlines()[0] if str(error) else error!r}. "
            "Check the name and the network, choose one of several configurations with `config`, or download the data "
            f"elsewhere and give its files as `path`{dataset}. If no file or hub data set was meant: {_remedy(known)}"
        ) from error
    splits = {str(split): _placed(f"{name} {split}", row_dicts(rows, "rows")) for split, rows in published.items()}
    prefix = named.name if named else str(repository).partition("/")[2]
    return _Rows(splits, name, prefix, "from the hub")


# ------------------------------------------------------------------------------------------------------- examples


def _read(rules: _Rules, rows: _Rows) -> DatasetDict | Dataset:
    """Read what was found."""
    source, names = rules.source, list(rows.splits)
    wanted = [source.split] if source.split and source.split in names and len(names) > 1 else names
    built: dict[str, Dataset] = {}
    for split in wanted:
        # What is in one piece is divided by our own rule; where there are several splits, they hold.
        built.update(_build(rules, rows, split, "" if len(names) == 1 else split))
    if "" in built:
        built = {names[0]: built[""]}
    shapes = [(count, (shape or "row").partition(" ")) for shape, count in rules.shapes.most_common()]
    told = ", ".join(f"{many(count, noun)} {of}".rstrip() for count, (noun, _, of) in shapes)
    log.info("%s: %s: %s", rows.origin, rows.title, told)
    return _choose_split(built, source.split, rows.origin)


def _build(rules: _Rules, found: _Rows, split: str, target: str) -> dict[str, Dataset]:
    """Turn the rows of one split into examples; "" is data in one piece, which a data set may divide."""
    source, named, bad = rules.source, rules.named, rules.bad
    columns = Columns(source.columns, known=named is not None)
    builders: dict[str, ExampleBuilder] = {}
    skipped = 0
    for number, (place, row) in enumerate(_counted(found.splits[split]())):
        try:
            if isinstance(row, RowError):
                raise row
            renamed = columns.renamed(row, place)
            divided = named.split_of(number, renamed, place) if named and not target else None
            converted = named.convert(renamed, place) if named else renamed
            trains = (target if divided is None else divided) in ("", "train")
            owner = rules.owner(row, place) if rules.owner and trains else ""
        except UserError as error:
            bad.add(place, row, error)
            continue
        if converted is None:
            skipped += 1
            continue
        name = target if divided is None else divided
        if name not in builders:
            builders[name] = ExampleBuilder(found.origin, found.prefix, bad, rules.check)
        if not builders[name].has(source.limit):
            builders[name].add(converted, place, owner)
        elif divided is None:
            break
    columns.check()
    if skipped:
        log.warning("%s: left out %s without a text", found.origin, many(skipped, "row"))
    builders = builders or {target: ExampleBuilder(found.origin, found.prefix, bad)}
    for builder in builders.values():
        rules.shapes.update(builder.shapes)
    return {name: builder.finish() for name, builder in builders.items()}


def _counted(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The rows, with a progress bar."""
    with progress_bar("rows read") as update:
        for number, row in enumerate(rows):
            if number % SHOWN_ROWS == SHOWN_ROWS - 1:
                update(number + 1, None)
            yield row


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


def read_rows(path: str | Path) -> Iterator[tuple[int | str, Row]]:
    """Read the rows of a file one by one, whatever its format, which its content and the name's ending tell.

    Yields:
        The line the row starts in (parquet and Arrow: its number, from 1; of an array in one line both), and the row.
        CSV values are text.

    Raises:
        UserError: no such file, or content that is not of that format, with file and line.
    """
    for each in _existing(str(path)):
        for line, row in read_lines(each):
            if isinstance(row, RowError):
                raise row
            yield line, row


def read_scores(path: str | Path) -> list[Row]:
    """The rows of a file of scores, as `read_rows` gives them, but with numbers where CSV has them as text.

    Raises:
        UserError: as `read_rows`.
    """
    scores: list[Row] = []
    for each in _existing(str(path)):
        as_text = format_of(each) in DELIMITED
        for _, row in read_rows(each):
            scores.append({name: _value(name, text) for name, text in row.items()} if as_text else row)
    return scores


def _value(column: str, text: str) -> float | str | None:
    """What a text of CSV says in a table of scores: a name, a number, or that it is missing."""
    if column == "id":
        return text or None
    try:
        return None if text in NO_VALUES else float(text)
    except ValueError:
        return text
