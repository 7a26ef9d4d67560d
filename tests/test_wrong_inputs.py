"""Wrong recipes, files and command lines, by the hundred: status 2, one message, and nothing made or removed."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main

from srd import cli
from srd.base import console

COMMANDS: Any = typer.main.get_command(cli.app)  # the same for every call; building it takes a tenth of a second
SMALLEST = {"teacher": "teacher: big", "student": "student: small", "data": "data: rows.jsonl"}
ROW = {"instruction": "a", "output": "b"}
SCORE = {"id": "a", "rouge_l": 0.5, "ce": 1.0}


class Outcome(NamedTuple):
    """The exit status of a command, and what it told."""

    status: int
    told: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run ``srd`` in this process, in an empty folder."""
    monkeypatch.setattr(console.console, "_width", 10_000)
    monkeypatch.setattr(cli, "app", COMMANDS)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr("sys.argv", ["srd", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Outcome(int(stop.value.code or 0), capsys.readouterr().err)

    return run


def everything(folder: Path) -> dict[str, Any]:
    """Every file, folder and link below a folder, with its content."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        regular = path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
        found[str(path.relative_to(folder))] = path.read_bytes() if regular else path.lstat().st_mode
    return found


@pytest.fixture
def refused(call: Call, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused; gives its one message."""

    def run(*arguments: Any) -> str:
        before = everything(tmp_path)
        status, told = call(*arguments)
        assert status == 2, told
        assert len(re.findall("^error: ", told, re.MULTILINE)) == 1 and told.startswith("error: "), told
        assert "Traceback" not in told and "bug in srd" not in told
        assert everything(tmp_path) == before
        return told.removeprefix("error: ")

    return run


# ------------------------------------------------------------------------------------------------------------- recipes

LONG = "x" * 300
WRONG_VALUES = {
    # a key of the recipe: values that are wrong there
    "name": ["../../evil", "/anywhere", "''", "'.'", "..", "a/b", "'a\\b'", '"a\\0b"', '"a\\tb"', '" a"', "a.",
             "'a '", "3",
             "[a]", "x" * 101, LONG, '"a\\u202eb"', "null", ".hidden", "{a: b}"],
    "seed": ["4294967296", "18446744073709551616", "9" * 5000, "-1", "1.0", "true", "'1'", "null", "[1]", ".inf", "1e2",
             "!!set {1}", "0x10", "yes"],
    "description": ["3", "null", "[a]"],
    "plugins": ["x", "['']", "[nowhere]", "[nowhere.py]", "[3]", "['.']", "!!set {a}", "{a: b}", "[broken.py]",
                "[raises.py]", "[exits.py]", "[a, a]", "[missing.py]", "[/]"],
    "extends": ["3", "true", "[3]", "{a: b}", "''", "[nowhere.yaml]", "mine.yaml", "unknown-name", LONG],
    "teacher": ["''", "3", "[]", "{}", "null", "{model: null}", "{model: ''}", "{model: a, dtype: float7}",
                "~no-such-user/x",
                "{model: a, sft: {method: kd}}", "{model: a, trust_remote_code: 1}", "{model: a, revision: ''}",
                "{model: a, sft: {curriculum: true}}", "{model: a, sft: 3}", "{model: a, x: 1}"],
    "student": ["''", "3", "null", "{drop_layers: -1}", "{drop_layers: []}", "{drop_layers: [1, 1]}",
                "{drop_layers: true}",
                "{drop_layers: [a]}", "{drop_layers: 1.5}", "{drop_layers: 2, revision: x}", "{drop_layers: 0}",
                "{drop_layers: 2, adapter: x}", "{drop_layers: 2, trust_remote_code: true}"],
    "data": ["''", "3", "[]", "['']", "{}", "null", "[a, a]",
             "{train: {path: x, limit: 0}}", "{train: {path: x, limit: 1.0}}", "{train: {path: x, columns: [a]}}",
             "{train: {path: x, columns: {a: 1}}}", "{train: {path: x, format: xml}}", "{train: {path: x, split: ''}}",
             "{train: {dataset: ''}}", "{train: {path: {a: b}}}", "{train: x, validation_size: true}",
             "{train: x, validation_size: 0}", "{train: x, test_size: '1'}", "{train: x, template: ''}",
             "{train: x, max_length: 0}", "{train: x, max_length: 64}", "{train: x, max_prompt_length: 1e3}",
             "{train: x, bad_rows: keep}", "{train: x, corruption: {share: 2}}", "{train: x, corruption: {kinds: []}}",
             "{train: x, corruption: {kinds: [swapped, swapped]}}", "{train: '~no-such-user/x'}",
             "{train: x, leaks: maybe}", "{train: x, leaks: true}",
             "{train: x, cleaning: {action: drop, find: []}}"],
    "generation": ["{engine: tgi}", "{batch_size: 0}", "{batch_size: '8'}", "{max_new_tokens: 0}", "3", "null"],
    "reflection": ["{max_new_tokens: 0}", "{max_new_tokens: true}", "3"],
    "cache": ["{enabled: 'yes'}", "{dir: ''}", "{limit_gb: 0}", "{limit_gb: .nan}", "{dtype: int8}", "false"],
    "training": ["{optimizer: adamm}", "{optimizer: galore_adamw}", "{optimizer: ''}", "{optimizer: 3}",
                 "{log_to: [foo]}",
                 "{log_to: wandb}", "{log_to: [wandb, wandb]}", "{log_to: [all]}", "{log_to: ['']}",
                 "{lora: {targets: []}}", "{lora: {targets: ['']}}", "{lora: {targets: [3]}}", "{lora: {targets: all}}",
                 "{lora: true}", "{lora: {r: 0}}", "{lora: {r: 1.5}}", "{lora: {dropout: 1}}", "{lora: {alpha: 0}}",
                 "{seed: 4294967296}", "{seed: -1}", "{seed: 1.5}", "{epochs: true}", "{epochs: '2'}", "{epochs: 0}",
                 "{epochs: 1e400}", "{epochs: 1e9}", "{epochs: 1, epochs: 3}", "{batch_size: 8.0}", "{batch_size: 0}",
                 "{micro_batch_size: 5}", "{learning_rate: fast}", "{learning_rate: .inf}",
                 "{weight: 2}", "{weight: 'one'}", "{temperature: 0}",
                 "{temperature: 1e-30}", "{temperature: 1e30}", "{temperature: 2}", "{weight: 0.5}",
                 "{weight_decay: 1e308}", "{lora: {alpha: 1e308}}", "{min_learning_rate: 1}",
                 "{schedule: cosine, learning_rate: 1e-8}", "{curriculum: {temperature: 1e-40}}",
                 "{curriculum: {temperature: [1, 1e9]}}", "{curriculum: {k: 1e300}}",
                 "{method: {name: gkd, temperature: 1e-40}}", "{method: {name: distillm, temperature: 1e3}}",
                 "{schedule: step}", "{warmup: 1}", "{schedule: linear, min_learning_rate: 1e-6}",
                 "{schedule: constant, min_learning_rate: 0}",
                 "{precision: int4}", "{select_by: bleu}", "{objective: nope}", "{objective: 3}", "{objective: [a]}",
                 "{objective: {name: jsd, lam: x}}", "{objective: {name: jsd, lam: true}}", "{objective: {lam: 1}}",
                 "{objective: {name: jsd, lam: .nan}}", "{objective: {name: jsd, lam: 0}}",
                 "{objective: {name: sfkl, alpha: 1}}", "{method: nope}", "{method: 3}", "{method: [kd]}",
                 "{method: {name: [kd]}}", "{method: {name: kd, x: 1}}", "{curriculum: 3}",
                 "{curriculum: {stages: 2.0}}",
                 "{curriculum: {select: 0}}", "{curriculum: {temperature: []}}", "{curriculum: {temperature: [a]}}",
                 "{curriculum: {k: true}}", "{curriculum: {k: '60'}}", "{curriculum: {order: up}}", "5", "null", "[]"],
    "baselines": ["[]", "{'': {}}", "{../x: {}}", "{kd: null}", "{kd: 3}", "{teacher: {}}", "{kd: {x: 1}}", "{3: {}}",
                  f"{{{'x' * 101}: {{}}}}"],
    "evaluation": ["{seeds: []}", "{seeds: [1, 1]}", "{seeds: [-1]}", "{seeds: [4294967296]}", "{seeds: 3}",
                   "{seeds: [true]}", "{seeds: ['1']}", "{seeds: [18446744073709551616]}", "{temperature: -1}",
                   "{temperature: 1e-40}", "{temperature: 1e30}", "{top_p: 0}", "{tasks: gsm8k}", "{tasks: [{}]}", 
                   "{tasks: [nope]}", "{tasks: ['iwslt2017:xx-de']}",
                   "{tasks: [gsm8k, gsm8k]}", "{tasks: [{name: gsm8k, path: ''}]}", "{models: []}", "{models: [a, a]}",
                   "{allow_code_execution: 'yes'}"],
    "unknown": ["1"],
}  # fmt: skip


def recipe_with(key: str, value: str) -> str:
    lines = {**SMALLEST, key: f"{key}: {value}"}
    return "\n".join(lines.values()) + "\n"


@pytest.fixture
def plugins(tmp_path: Path) -> None:
    """Modules that cannot be imported, each in its own way."""
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("x = 1\nraise KeyError('boo')\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "missing.py").write_text("import no_such_module\n")


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in WRONG_VALUES for value in WRONG_VALUES[key]],
                         ids=lambda value: value[:40].replace("\0", ""))  # fmt: skip
@pytest.mark.usefixtures("plugins")
def test_a_wrong_value_in_a_recipe(key: str, value: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(recipe_with(key, value), encoding="utf-8")
    message = refused("run", "mine.yaml")
    assert key in message or "line" in message or value.strip("[]'") in message or "extends" in recipe_with(key, value)
    assert len(message) < 2500


@pytest.mark.parametrize(
    ("plugin", "place"),
    [("broken.py", "line 1"), ("raises.py", "line 2"), ("exits.py", "line 2"), ("missing.py", "line 1")],
)
@pytest.mark.usefixtures("plugins")
def test_a_plugin_that_fails_says_where(plugin: str, place: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(recipe_with("plugins", f"[{plugin}]"))
    for _ in range(2):  # it is not taken for imported the second time
        message = refused("run", "mine.yaml")
        assert plugin in message and place in message


RECIPE_FILES = {
    "latin-1": "description: é\n".encode("latin-1"),
    "UTF-16": "teacher: a\n".encode("utf-16"),
    "NUL": b"teacher: a\0b\n",
    "empty": b"",
    "a comment": b"# nothing\n",
    "null": b"null\n",
    "a list": b"- a\n",
    "a word": b"word\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "deep": b"teacher: " + b"[" * 3000,
    "deep block": b"- " * 3000,
    "a bomb": b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + b"".join(f"{a}: &{a} [{','.join([f'*{b}'] * 10)}]\n".encode() for a, b in zip("bcdefg", "abcdef", strict=True)),
    "an alias of itself": b"teacher: &a [*a]\n",
    "a key twice": b"seed: 1\nteacher: a\nseed: 2\n",
    "a number as key": b"1: 2\n",
    "JSON lines": b'{"a": 1}\n{"a": 2}\n',
    "binary": bytes(range(256)),
    "large": b"# " + b"x" * (1 << 20) + b"\n",
}  # fmt: skip


@pytest.mark.parametrize("content", RECIPE_FILES)
def test_a_file_that_is_no_recipe(content: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(RECIPE_FILES[content])
    assert "mine.yaml" in refused("run", "mine.yaml")
    refused("plan", "mine.yaml")


def test_a_byte_order_mark_is_no_mistake(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbf" + "\n".join(SMALLEST.values()).encode())
    assert call("recipes", "mine.yaml").status == 0


@pytest.mark.parametrize("name", ["", ".", "/", LONG, "nope.yaml", "/dev/null", "folder", "folder/x.yaml",
                                  "mine.yaml/x",
                                  "loop.yaml", "~", "a/" * 3000])  # fmt: skip
def test_a_recipe_that_is_no_file(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.yaml").write_text("teacher: a\n")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    refused("run", name)
    refused("sweep", name)


OVERRIDES = ["seed", "=1", ".=1", "a..b=1", ".seed=1", "seed.=1", "a.b=", "seed=", "seed.x=1", "teacher.model.x=1",
             "training=",
             "data=", "name=../x", "training.epochs=1e400", "seed=!!int '1'x", "seed=1\nb: 2", "seed={", "x=y=z",
             "seed=[1]",
             "training.epoch=1", "teacher.x=1", "student=null", "baselines.kd=null", "seed={a: 1, a: 2}",
             "a=" + "[" * 5000,
             "training.objective.x=1", "seed=*x", "training.temperature=1", "training.weight=0.5",
             f"training.method={LONG}", "", " ", "--", "training.lora.targets=[]"]  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda text: text[:30])
def test_a_wrong_override(override: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("\n".join(SMALLEST.values()))
    refused("run", "mine.yaml", *(["--", override] if override.startswith("-") else [override]))


def test_all_mistakes_are_told_together(refused: Callable[..., str], tmp_path: Path) -> None:
    text = recipe_with("training", "{seed: -1, optimizer: adamm, log_to: [foo], lora: {targets: []}, epochs: '3'}")
    (tmp_path / "mine.yaml").write_text(text + "name: ../x\nevaluation: {seeds: [1, 1]}\n")
    message = refused("run", "mine.yaml")
    assert "7 mistakes" in message
    for part in ("seed", "adamm", "foo", "lora.targets", "epochs", "../x", "evaluation.seeds"):
        assert part in message


# --------------------------------------------------------------------------------------------------------------- files


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


GOOD = parquet(pa.table({"id": [f"row {i}" for i in range(2000)], "text": ["x" * (i % 50) for i in range(2000)]}))
BROKEN_PAGE = GOOD[:40] + bytes(200) + GOOD[240:]

# Content of a file of rows that can be none, by its name. What a command wants of its rows makes no difference.
WRONG_FILES: dict[str, bytes] = {
    "empty.jsonl": b"",
    "blank.jsonl": b"\n\n  \n",
    "deep.jsonl": b'{"a": ' + b"[" * 100_000,
    "closed-deep.jsonl": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested.jsonl": b'{"text": ' + b'{"a":' * 900 + b"1" + b"}" * 901 + b"\n",
    "digits.jsonl": b'{"text": ' + b"9" * 5000 + b"}",
    "list.jsonl": b"[1, 2]\n",
    "number.jsonl": b"3\n",
    "words.jsonl": b"hello\n",
    "cut.jsonl": b'{"text": "a"}\n{"text": "b',
    "latin-1.jsonl": '{"text": "é"}\n'.encode("latin-1"),
    "utf-16.jsonl": '{"text": "é"}\n'.encode("utf-16")[:-1],
    "nul.jsonl": b'{"text": "a"}\n\0\0\0\n',
    "twice.jsonl": b'{"text": "a", "text": "b"}\n',
    "packed.jsonl": gzip.compress(b'{"text": "a"}\n')[:-9],
    "empty.json": b"",
    "object.json": b'{"text": "a"}\n{"tex',
    "open.json": b'[{"text": "a"}',
    "no-comma.json": b'[{"text": "a"} {"text": "b"}]',
    "more.json": b'[{"text": "a"}] x',
    "none.json": b"[]",
    "numbers.json": b"[1, 2]",
    "deep.json": b'[{"a": ' + b"[" * 100_000,
    "digits.json": b'[{"text": ' + b"9" * 5000 + b"}]",
    "twice.json": b'[{"text": "a", "text": "b"}]',
    "latin-1.json": '[{"text": "é"}]'.encode("latin-1"),
    "empty.csv": b"",
    "names.csv": b"text,output\n",
    "ragged.csv": b"text,output\na\n",
    "long.csv": b"text,output\na,b,c\n",
    "quote.csv": b'text,output\n"a,b\n',
    "latin-1.csv": "text,output\né,b\n".encode("latin-1"),
    "twice.csv": b"text,text\na,b\n",
    "empty.parquet": b"",
    "words.parquet": b"hello" * 100,
    "magic.parquet": b"PAR1",
    "cut.parquet": GOOD[:-100],
    "page.parquet": BROKEN_PAGE,
    "footer.parquet": GOOD[:-30] + bytes(22) + GOOD[-8:],
    "rows.txt": b"text\n",
    "rows": b"text\n",
    "packed.jsonl.gz": gzip.compress(b'{"text": "a"}\n')[:-9],
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_that_cannot_be_read(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    """As predictions, as references, as scores to rank."""
    (tmp_path / name).write_bytes(WRONG_FILES[name])
    (tmp_path / "good.jsonl").write_text(json.dumps({"text": "a", "output": "b"}) + "\n")
    for arguments in (("score", name, "--references", "good.jsonl"), ("score", "good.jsonl", "--references", name),
                      ("rank", "--scores", name, "-o", "ranked.jsonl")):  # fmt: skip
        message = refused(*arguments)
        assert name in message
        assert len(message) < 900


SCORES = {
    "other-columns.jsonl": b'{"a": 1}\n',
    "no-id.jsonl": b'{"id": null, "rouge_l": 1, "ce": 1}\n',
    "text.jsonl": b'{"id": "a", "rouge_l": "high", "ce": 1}\n',
    "nan.csv": b"id,rouge_l,ce\na,nan,1\n",
    "inf.csv": b"id,rouge_l,ce\na,1,inf\n",
    "missing.csv": b"id,rouge_l,ce\na,1,\n",
    "twice.csv": b"id,rouge_l,ce\na,1,1\na,1,1\n",
    "column-twice.csv": b"id,id,rouge_l,ce\na,a,1,1\n",
    "mixed.jsonl": b'{"id": "a", "rouge_l": 1, "ce": 1}\n{"id": 3, "rouge_l": "x", "ce": 1}\n',
    "nested.jsonl": b'{"id": {"a": 1}, "rouge_l": [1], "ce": {}}\n',
    "lists.parquet": parquet(pa.table({"id": [["a"]], "rouge_l": [[1.0]], "ce": [1.0]})),
    "bytes.parquet": parquet(pa.table({"id": [b"\xff\xfe"], "rouge_l": [1.0], "ce": [1.0]})),
    "no-rows.parquet": parquet(pa.table({"id": pa.array([], pa.string()), "rouge_l": pa.array([], pa.float64()),
                                         "ce": pa.array([], pa.float64())})),
    "latin-1.jsonl": '{"id": "é", "rouge_l": 1, "ce": 1}\n'.encode("latin-1"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
def test_scores_that_cannot_be_ranked(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(SCORES[name])
    assert name in refused("rank", "--scores", name, "-o", "ranked.csv")


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """What a path can be beside a file of rows."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "full.jsonl").mkdir()
    (tmp_path / "full.jsonl" / "precious").write_text("x")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "broken.jsonl").symlink_to("nowhere")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "good.jsonl").write_text(json.dumps({**SCORE, "text": "a", "output": "b"}) + "\n")
    (tmp_path / "link.jsonl").symlink_to("good.jsonl")
    return tmp_path


PATHS = ["folder", "full.jsonl", "pipe.jsonl", "broken.jsonl", "loop.jsonl", "/dev/null", "/dev/zero",
         "good.jsonl/x.jsonl",
         f"{LONG}.jsonl", "nowhere/x.jsonl", "gone.jsonl", "~no-such-user/x.jsonl",
         "a/" * 3000 + "x.jsonl"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:20])
@pytest.mark.usefixtures("places")
def test_a_path_that_is_no_file(path: str, refused: Callable[..., str]) -> None:
    refused("score", path, "--references", "good.jsonl")
    refused("score", "good.jsonl", "--references", path)
    refused("rank", "--scores", path, "-o", "ranked.jsonl")


TARGETS = ["full.jsonl", "link.jsonl", "broken.jsonl", "loop.jsonl", "pipe.jsonl", "good.jsonl/x.jsonl",
           f"{LONG}.jsonl", "x.txt",
           "x", "folder", "/proc/x.jsonl", "", "/dev/null", "good.jsonl/a/b.jsonl"]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda path: path[:20])
@pytest.mark.usefixtures("places")
def test_a_target_that_cannot_be_written(target: str, refused: Callable[..., str]) -> None:
    refused("rank", "--scores", "good.jsonl", "-o", target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text(json.dumps({**SCORE, "text": "a", "output": "b"}) + "\n")
    (tmp_path / "mine.yaml").write_text("teacher: a\n")
    for name in ("good.jsonl", "mine.yaml"):
        (tmp_path / name).chmod(0)
    for arguments in (("run", "mine.yaml"), ("rank", "--scores", "good.jsonl", "-o", "x.jsonl")):
        assert "ermission" in refused(*arguments)


# ------------------------------------------------------------------------------------------------------- command lines

COMMAND_LINES = [
    ("rank",),
    ("rank", "mine.yaml", "-o", "x.jsonl"),
    ("rank", "mine.yaml", "--k", "5"),
    ("rank", "mine.yaml", "--by", "ce"),
    ("rank", "mine.yaml", "--seed", "1"),
    ("rank", "mine.yaml", "--drop-bad"),
    ("rank", "mine.yaml", "--scores", "good.jsonl", "-o", "x.jsonl"),
    ("rank", "--scores", "good.jsonl", "-o", "x.jsonl", "--run-dir", "run"),
    ("rank", "--scores", "good.jsonl"),
    ("rank", "--scores", "good.jsonl", "-o", "x.jsonl", "--seed", "1"),
    *(("rank", "--scores", "good.jsonl", "-o", "x.jsonl", "--k", k) for k in ("-1", "nan", "inf", "x", "")),
    *(("rank", "--scores", "good.jsonl", "-o", "x.jsonl", "--by", by) for by in ("x", "", "length", "RANDOM")),
    *(("rank", "--scores", "good.jsonl", "-o", "x.jsonl", "--by", "random", "--seed", seed)
      for seed in ("-1", "4294967296", "x", "1.5", "9" * 5000)),
    ("recipes", "demo-tiny", "--schema"),
    ("recipes", "nope"),
    *(("evaluate", "mine.yaml", *option) for option in (
        ("--limit", "1"), ("--seeds", "1"), ("--against", "x"), ("-o", "x"), ("--template", "chat"), ("--batch-size",
        "2"),
        ("--max-new-tokens", "2"), ("--max-prompt-length", "2"), ("--samples", "2"), ("--temperature", "1"),
        ("--allow-code-execution",))),
    *(("evaluate", "nowhere", "--task", "gsm8k=gsm8k.jsonl", *option) for option in (
        ("--limit", "0"), ("--limit", "x"), ("--seeds", ""), ("--seeds", "a"), ("--seeds", "1,1"), ("--seeds", "-1"),
        ("--seeds", "4294967296"), ("--batch-size", "0"), ("--max-new-tokens", "0"), ("--max-prompt-length", "0"),
        ("--samples", "0"), ("--temperature", "-1"), ("--temperature", "nan"), ("--temperature", "inf"),
        ("--temperature", "1e-40"),
        ("--run-dir", "x"), ("-o", "good.jsonl"), ("x=1",), ("--task", "nope"), ("--task", "gsm8k=gone"))),
    ("evaluate", "nowhere", "--task", ""),
    ("evaluate", "nowhere", "--task", "="),
    ("evaluate", "nowhere", "--task", "gsm8k=gsm8k.jsonl", "--allow-code-execution"),
    ("evaluate", "nowhere", "--task", "gsm8k=gsm8k.jsonl", "-o", "run"),
    ("evaluate", "nowhere", "--task", "gsm8k=gsm8k.jsonl", "-o", "run/evaluation/more"),
    ("curate", "mine.yaml", "-o", "run/student"),
    ("export", "run", "--to", "lm-eval", "-o", "run/stages"),
    ("report", "mine.yaml", "--run-dir", "nowhere"),
    ("report", "mine.yaml", "--run-dir", "folder"),
    ("report", "mine.yaml", "--run-dir", "run"),
    ("rank", "--scores", "good.jsonl", "-o", "x.jsonl", "--by", "ce", "--k", "5"),
    ("rank", "--scores", "good.jsonl", "-o", "x.jsonl", "--by", "ce", "--fusion", "max_rank"),
    ("rank", "--scores", "good.jsonl", "-o", "x.jsonl", "--fusion", "mean_rank", "--k", "5"),
    ("score", "good.jsonl"),
    ("score", "good.jsonl", "--references", "good.jsonl", "--allow-code-execution"),
    ("score", "good.jsonl", "--references", "good.jsonl", "--task", "nope"),
    ("score", "good.jsonl", "--references", "good.jsonl", "--task", ""),
    ("score", "good.jsonl", "--references", "good.jsonl", "--task", "mbpp"),
    ("score", "good.jsonl", "--references", "good.jsonl", "--task", "iwslt2017:a-b"),
    ("plan", "mine.yaml", "--devices", "0"),
    ("plan", "mine.yaml", "--devices", "x"),
    ("plan", "mine.yaml", "--flops-per-second", "0"),
    ("plan", "mine.yaml", "--flops-per-second", "nan"),
    ("curate", "mine.yaml", "-o", "good.jsonl"),
    ("run",),
    ("run", "mine.yaml", "--run-dir", ""),
    ("run", "mine.yaml", "--run-dir="),
    ("evaluate", "nowhere", "--task", "gsm8k=gsm8k.jsonl", "-o", ""),
    ("curate", "mine.yaml", "-o", " "),
    ("export", "run", "--to", "lm-eval", "-o", ""),
    ("sweep", "demo-main", "--dir", ""),
    ("run", "mine.yaml", "--run-dirr", "x"),
    ("run", "mine.yaml", "--run-dir", "good.jsonl"),
    ("run", "mine.yaml", "--run-dir", "good.jsonl/x"),
    ("run", "mine.yaml", "--run-dir", LONG),
    ("run", "mine.yaml", "--run-dir", "/proc/x"),
    ("run", "mine.yaml", "--run-dir", "/dev/null"),
    ("run", "mine.yaml", "--run-dir", "full.jsonl"),
    ("runn", "mine.yaml"),
    ("sweep", "mine.yaml"),
    ("sweep", "nope"),
    ("sweep", "demo-main", "--list", "--jobs", "2"),
    ("--nope",),
]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMAND_LINES, ids=lambda arguments: " ".join(arguments)[:60])
@pytest.mark.usefixtures("places")
def test_a_wrong_command_line(arguments: tuple[str, ...], refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("\n".join(SMALLEST.values()))
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps({"question": "a", "answer": "#### 1"}) + "\n")
    (tmp_path / "run").mkdir()
    for name, text in (("recipe.yaml", "name: mine\nseed: 9\n"), ("manifest.json", "{}")):
        (tmp_path / "run" / name).write_text(text + "\n".join(SMALLEST.values()) * (name == "recipe.yaml"))
    message = refused(*arguments)
    if arguments[0] == "evaluate" and "--task" in arguments and (options := arguments[4:]):
        assert options[0].split("=")[0] in message or options[-1] in message, "refused for another reason"
