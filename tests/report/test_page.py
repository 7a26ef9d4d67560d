"""The page and the last screen, for whole, partial, hostile and damaged runs."""

from __future__ import annotations

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.report.figures import logged, stage_bands
from srd.report.html import coded, environment, escape
from srd.report.page import build_report
from srd.report.reading import read_json_lines, read_run
from srd.report.summary import print_next_steps, print_summary
from srd.report.tables import Column, Table, to_html
from tests.report.fake_run import RECIPE, write_lines, write_parquet, write_run, write_text


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "whole", examples=200)


class TagBalance(HTMLParser):
    """Checks that every element is closed by its own end tag."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """A self-closed element needs no end."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(run_dir: Path) -> str:
    text = build_report(run_dir).read_text(encoding="utf-8")
    balance = TagBalance()
    balance.feed(text)
    assert balance.open == []
    return text


@pytest.mark.parametrize(
    ("setting", "told"),
    [("order: fresh", "Every pass drew its rows anew from all of them"),
     ("reflect_again: true", "ranked the rows anew (<code>reflect_again</code>), in part by what it knew by heart"),
     ("order: fresh\n    stages: 1", "Every pass drew its rows anew from all of them")],
)  # fmt: skip
def test_a_selection_that_was_not_trained_is_not_shown(
    whole_run: Path, tmp_path: Path, setting: str, told: str
) -> None:
    """Where every pass draws from all rows, or every stage ranks anew, what the ranking dropped may well be trained."""
    claims = ("Dropped", "dropped</", "enters in stage", "Hardest of those kept", "were kept of", "from easy to hard",
              "New rows", "ROUGE-L before", "Does it find bad examples?")  # fmt: skip
    before = read_page(whole_run)
    assert [claim for claim in claims if claim not in before] == []
    shutil.copytree(whole_run, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    stages = "" if "stages" in setting else "    stages: 3\n"
    recipe.write_text(RECIPE.replace("    stages: 3\n", f"{stages}    {setting}\n"))
    text = read_page(tmp_path / "run")
    shown = text[: text.index('id="recipe"')]
    assert [claim for claim in claims if claim in shown] == []
    assert shown.count(told) == 3 and "So no examples are shown" in shown
    assert "Validation ROUGE-L" in shown and "Answers to unseen prompts" in shown


def test_the_page_says_in_which_order_it_was_learnt(whole_run: Path, tmp_path: Path) -> None:
    for number, (order, told) in enumerate((("hard_to_easy", "from hard to easy"), ("random", "whatever their rank"))):
        shutil.copytree(whole_run, tmp_path / str(number))
        recipe = tmp_path / str(number) / "recipe.yaml"
        recipe.write_text(RECIPE.replace("    stages: 3\n", f"    stages: 3\n    order: {order}\n"))
        shown = read_page(tmp_path / str(number))
        shown = shown[: shown.index('id="recipe"')]
        assert told in shown and "from easy to hard" not in shown


def test_page_is_whole_and_self_contained(whole_run: Path) -> None:
    text = read_page(whole_run)
    assert build_report(whole_run) == whole_run / "report" / "index.html"
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == ["comparison", "training", "difficulty", "examples", "recipe", "time", "record"]
    assert not re.search(r'(?:src|href)="(?!#|\.\./)|@import|url\(|https?://', text)
    assert "missing" not in text.replace(".missing", "")
    assert "SRD is 1.4 points ahead of plain KD" in text
    assert text.count('<details class="example">') == 4 + 4 + 4 + 3 + 3
    assert text.count("Greatest gain") == 2
    assert "prefers-color-scheme: dark" in text
    header = text.split("<main>")[0]
    warned = len(json.loads((whole_run / "manifest.json").read_text())["warnings"])
    assert f"{warned} warning" in header and f"<code>srd chat {whole_run}</code>" in header


def test_every_stage_has_its_rows_and_what_became_of_the_answers(whole_run: Path, tmp_path: Path) -> None:
    text = read_page(whole_run)
    table = re.search(r'<section id="training".*?</table>', text, re.DOTALL)
    cells = re.findall(r'<t[hd][^>]* class="\w+">(.*?)</t[hd]>', table[0]) if table else []
    rows = [cells[start : start + 10] for start in range(10, 40, 10)]
    assert [row[:3] for row in rows] == [["1", "50", "50"], ["2", "100", "50"], ["3", "150", "50"]]
    before = [float(row[3]) for row in rows]
    assert before == sorted(before, reverse=True)  # easy to hard
    assert rows[0][9] == "–" and all(re.fullmatch(r"1?\d of 20", row[9]) for row in rows[1:])
    assert [title in text for title in ("After stage 1 ·", "After stage 2 ·", "After stage 3 ·")] == [True] * 3
    other = tmp_path / "other"
    shutil.copytree(whole_run, other)
    for path in other.glob("stages/*/validation.jsonl"):
        path.unlink()
    assert "Answers changed</th>" not in read_page(other) and "After stage" not in read_page(other)


def test_one_stage_is_not_said_to_follow_others(whole_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(whole_run, other)
    for folder in list((other / "stages").glob("[1-9]*")):
        shutil.rmtree(folder)
    assert "in one <dfn>stage</dfn>" in read_page(other) and "in one <dfn>stage" not in read_page(whole_run)


def test_words_are_explained_where_they_are_first_used(whole_run: Path) -> None:
    text = re.sub(r"<(style|nav).*?</\1>", "", read_page(whole_run), flags=re.DOTALL)
    header, main = text.split("<main>")
    for word in ("ROUGE-L", "Pass", "95% interval"):
        assert f"<dfn>{word}</dfn>" in header
    for word in ("stage", "Cross-entropy"):
        before = main[: main.index(f"<dfn>{word}</dfn>")]
        assert word.lower() not in re.sub(r"<[^>]+>", " ", header + before).lower()


def test_rouge_is_a_percentage_wherever_it_stands(whole_run: Path) -> None:
    """As the page explains it: of tables, of single answers, and on the map."""
    text = read_page(whole_run)
    scores = [float(found) for found in re.findall(r"ROUGE-L (?:\N{MINUS SIGN}|\+)?(\d+\.\d+)", text)]
    assert "after · ROUGE-L 70.0" in text and len(scores) > 200
    assert sum(score > 1 for score in scores) > 0.9 * len(scores)
    assert re.search("ROUGE-L of the student.{1,6}s answer, %", text)


def test_the_files_of_the_run_are_linked(whole_run: Path) -> None:
    links = re.findall(r'href="\.\./([^"]+)"', read_page(whole_run))
    assert {"recipe.yaml", "metrics.jsonl", "evaluation/metrics.json", "student/"} <= set(links)
    assert [link for link in links if not (whole_run / link).exists()] == []


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("What does `a.b` do?", "What does <code>a.b</code> do?"),
        ("a ` b ` c", "a ` b ` c"),
        ("raise data.max_length=143 or `x`", "raise <code>data.max_length=143</code> or <code>x</code>"),
        ("set training.lora={r: 16}.", "set <code>training.lora={r: 16}</code>."),
        ("srd plan says more: --run-dir DIR", "<code>srd plan</code> says more: <code>--run-dir</code> DIR"),
        ("the data.", "the data."),
        ("metadata.train_x is well-known", "metadata.train_x is well-known"),
        ("`<b>` & more", "<code>&lt;b&gt;</code> &amp; more"),
        ("See:\n```python\nx = `1`\n```", 'See:\n<code class="block">```python\nx = `1`\n```</code>'),
    ],
)
def test_code_is_marked_as_code(text: str, marked: str) -> None:
    assert str(coded(text, ticks=False)) == marked
    assert re.sub(r"</?code[^>]*>", "", coded(text)) == str(
        escape(text)
    )  # nothing is lost where a text is shown as it is


@pytest.mark.parametrize(("columns", "hint"), [(2, None), (4, "phone"), (12, "narrow")])
def test_a_table_wider_than_the_screen_says_so(columns: int, hint: str | None) -> None:
    text = to_html(Table([Column(f"column {i}") for i in range(columns)], [list(range(columns))]))
    found = re.search(r'class="scrolls (\w+)"', text)
    assert (found[1] if found else None) == hint


@pytest.mark.parametrize(
    ("title", "kept"),
    [
        ("ROUGE-L before", '<span class="word">ROUGE-L</span> before'),
        ("Of the teacher", "Of the teacher"),
        ("a-task-with-a-long-name", "a-task-with-a-long-name"),
        ("a&-b x", '<span class="word">a&amp;-b</span> x'),
    ],
)
def test_a_heading_does_not_break_within_a_short_word(title: str, kept: str) -> None:
    assert f">{kept}</th>" in to_html(Table([Column(title)], [[1]]))


def test_scores_by_script_are_named(whole_run: Path, tmp_path: Path) -> None:
    assert "by script" not in read_page(whole_run)
    other = tmp_path / "other"
    shutil.copytree(whole_run, other)
    details = {"tasks": {"test": {"scoring": {"rouge_words": "unicode"}}, "gsm8k": {"scoring": {}}}}
    write_text(other / "evaluation/details.json", json.dumps(details))
    assert "ROUGE of test counts words by script" in read_page(other)


def test_difficulty_map_draws_every_example(whole_run: Path) -> None:
    text = build_report(whole_run).read_text(encoding="utf-8")
    titles = re.findall(r"<title>#\d+ train-\d+: ROUGE-L", text)
    assert len(titles) == 200
    assert "150 examples were kept of 200." in text
    assert "Does it find bad examples?" in text


def test_a_run_that_has_only_begun_names_the_commands(tmp_path: Path) -> None:
    run_dir = tmp_path / "new run"
    write_text(run_dir / "recipe.yaml", RECIPE)
    text = read_page(run_dir)
    for command in ("evaluate", "distill", "rank", "run"):
        assert re.search(
            rf"<code>srd {command} &#x27;.*new run/recipe.yaml&#x27; --run-dir &#x27;.*new run&#x27;</code>",
            text,
        )
    assert "Nothing has been compared yet." in text


@pytest.mark.parametrize(
    "absent",
    [
        "manifest.json",
        "metrics.jsonl",
        "evaluation",
        "curriculum",
        "reflection",
        "examples",
        "evaluation/predictions",
    ],
)
def test_any_part_may_be_missing(whole_run: Path, tmp_path: Path, absent: str) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run, run_dir)
    path = run_dir / absent
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    text = read_page(run_dir)
    assert ("SRD is 1.4 points ahead" in text) == (absent != "evaluation")
    print_summary(run_dir, Console(file=io.StringIO()))


def write_hostile_run(run_dir: Path, hostile: str) -> Path:
    """A run directory with one text in every place that takes one."""
    write_text(run_dir / "recipe.yaml", RECIPE.replace("name: docstrings", f"name: {json.dumps(hostile)}"))
    names = ("id", "instruction", "input", "messages", "prompt", "corruption")
    write_parquet(run_dir / "examples" / "train.parquet", [dict.fromkeys(names, hostile) | {"references": [hostile]}])
    write_parquet(run_dir / "examples" / "test.parquet", [dict.fromkeys(names, hostile) | {"references": [hostile]}])
    numbers = {"rouge_l": 0.5, "ce": 1.0}
    write_parquet(run_dir / "reflection" / "scores.parquet", [{"id": hostile, "response": hostile} | numbers])
    rank = {"rank_rouge": 1.0, "rank_ce": 1.0, "rrf": 0.03, "rank": 1, "kept": True, "stage": 0}
    write_parquet(run_dir / "curriculum" / "ranked.parquet", [{"id": hostile} | numbers | rank])
    score = {hostile: {"mean": 1.0, "std": 0.1, "seeds": {"1": 1.0, "2": 1.0}}}
    write_text(
        run_dir / "evaluation" / "metrics.json",
        json.dumps({hostile: {hostile: score}, "kd": {hostile: score}}),
    )
    pair = {
        "a": hostile,
        "b": hostile,
        "task": hostile,
        "metric": hostile,
        "difference": 1,
        "low": 0,
        "high": 2,
    }
    write_text(run_dir / "evaluation" / "comparisons.json", json.dumps([pair]))
    write_lines(run_dir / "evaluation" / "train_samples.jsonl", [{"id": hostile, "model": hostile, "text": hostile}])
    point = {"arm": hostile, "stage": 0, "eval_loss": 1.0}
    write_lines(
        run_dir / "metrics.jsonl",
        [point | {"step": 1, "passes": 1, "eval_rouge_l": 0.1}, point | {"step": 2, "passes": 2}],
    )
    steps = {
        f"train/{hostile}": {"seconds": 1, "finished": hostile, "summary": {}},
        "examples": {"summary": {hostile: hostile}},
    }
    manifest = {
        "steps": steps,
        "warnings": [hostile],
        "versions": {hostile: hostile},
        "machine": {hostile: hostile},
    }
    write_text(run_dir / "manifest.json", json.dumps(manifest))
    return run_dir


def page_and_screen(run_dir: Path) -> tuple[str, str]:
    output = io.StringIO()
    print_summary(run_dir, Console(file=output, width=2000))
    return read_page(run_dir), output.getvalue()


def test_every_text_from_data_is_escaped(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script>&'
    text, screen = page_and_screen(write_hostile_run(tmp_path / "run", hostile))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 20
    assert "<script>alert(1)" in screen


#: What a terminal or a browser obeys: C0 but tab and line feed, delete, C1, and the marks and embeddings of direction.
OBEYED = [*range(9), *range(0xB, 0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F),
          *range(0x2066, 0x206A)]  # fmt: skip


def test_nothing_that_is_obeyed_reaches_page_or_screen(tmp_path: Path) -> None:
    hostile = "".join(f"{chr(code)}x" for code in OBEYED)
    for text in page_and_screen(write_hostile_run(tmp_path / "run", hostile)):
        assert [f"{code:x}" for code in OBEYED if chr(code) in text] == []
        assert r"\x1bx" in text and r"\u202ex" in text
    run_dir = write_hostile_run(tmp_path / "raw", "text")
    with open(run_dir / "recipe.yaml", "a") as file:
        file.write("\u2003\u200ekey\u202e: \u2066value\n")
    assert not set("\u200e\u202e\u2066") & set(read_page(run_dir))


def test_a_very_long_text_is_cut_with_a_note(tmp_path: Path) -> None:
    page = read_page(write_hostile_run(tmp_path / "run", "long " * 100_000))
    assert len(page) < 2_000_000
    assert page.count("more characters)") > 20


def test_summary_says_gain_cost_and_places(whole_run: Path) -> None:
    build_report(whole_run)
    wide, narrow = io.StringIO(), io.StringIO()
    print_summary(whole_run, Console(file=wide, width=200))
    said, next_steps = wide.getvalue().rsplit("\n\n", 1)
    *_, gain, cost, _, _, _, student, report, warnings = said.splitlines()
    assert [line.split(": ")[0] for line in next_steps.splitlines()] == ["Talk to it", "Evaluate it", "Export it"]
    for page in (next_steps, (whole_run / "report" / "index.html").read_text(encoding="utf-8")):
        assert f"srd chat {whole_run}" in page and f"{whole_run / 'recipe.yaml'} --run-dir {whole_run}" in page
    assert gain.startswith("SRD is 1.4 points ahead of plain KD in ROUGE-L on pydocs: 24.8 against 23.4")
    assert cost.startswith("It took 75% of the examples, 25% fewer passes and 13% less time")
    assert [student, report, warnings] == [
        f"Student: {whole_run / 'student'}",
        f"Report: {whole_run / 'report' / 'index.html'}",
        "1 warning: see the end of the report",
    ]
    print_summary(whole_run, Console(file=narrow, width=80))
    assert "Initial student" in narrow.getvalue()
    assert f"Report: {whole_run / 'report' / 'index.html'}\n" in narrow.getvalue()


@pytest.mark.parametrize(("terminal", "width", "boxed"), [(True, 60, True), (True, 30, False), (False, 60, False)])
def test_next_steps_stand_in_a_box_where_there_is_room(terminal: bool, width: int, boxed: bool) -> None:
    steps = [("Talk to it", "srd chat '[runs]/mine'"), ("Push it", "srd push '[runs]/mine' me/mine --dry-run")]
    screen = io.StringIO()
    print_next_steps(steps, Console(file=screen, width=width, force_terminal=terminal, color_system=None))
    lines = screen.getvalue().strip().splitlines()
    assert ("What next?" in lines[0]) == boxed
    shown = [line.strip("│ ") for line in (lines[1:-1] if boxed else lines)]
    assert shown == [f"{title + ':':<13}{command}" for title, command in steps]


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no recipe\.yaml"):
        build_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metrics.jsonl", r"metrics.jsonl, line 1: not JSON"),
        ("manifest.json", r"manifest.json, line 1: not JSON"),
        ("recipe.yaml", r"recipe.yaml is not YAML"),
        ("curriculum/ranked.parquet", r"ranked.parquet cannot be read"),
        ("recipe.yaml", r"recipe.yaml cannot be read.*Run the recipe again"),
        ("evaluation/metrics.json", r"metrics.json cannot be read.*Delete the file"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    write_text(tmp_path / "recipe.yaml", RECIPE)
    write_text(tmp_path / name, "{broken: [\nsecond line\n")
    if ".*" in message:
        (tmp_path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=message):
        build_report(tmp_path)
    assert not (tmp_path / "report" / "index.html").exists()


def test_unfinished_last_line_of_a_killed_run_is_left_out(tmp_path: Path) -> None:
    write_text(tmp_path / "metrics.jsonl", '{"step": 1}\n{"step": 2}\n{"st')
    assert read_json_lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]
    write_text(tmp_path / "metrics.jsonl", '{"text": "one\u2028line"}\n')
    assert read_json_lines(tmp_path / "metrics.jsonl") == [{"text": "one\u2028line"}]
    write_text(tmp_path / "metrics.jsonl", '{"step": 1}\n\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 3: not JSON"):
        read_json_lines(tmp_path / "metrics.jsonl")


def test_steps_repeated_after_a_restart_count_once() -> None:
    rows = [
        {"arm": "srd", "stage": 0, "step": s, "passes": s / 10, "loss": v} for s, v in [(1, 3), (2, 2), (2, 9), (3, 1)]
    ]
    assert [row["loss"] for row in logged(rows, "srd", "loss")] == [3, 9, 1]


def test_what_was_logged_once_is_a_sentence_and_no_empty_plot(whole_run: Path, tmp_path: Path) -> None:
    def page(rows: list[dict[str, object]]) -> str:
        write_lines(other / "metrics.jsonl", rows)
        return re.sub(r"<title>.*?</title>", "", read_page(other))

    other = tmp_path / "other"
    shutil.copytree(whole_run, other)
    lines = [
        {"arm": variant, "stage": 0, "step": 9, "passes": 2, "eval_loss": loss}
        for variant, loss in (("kd", 3.0212), ("srd", 2.9513))
    ]
    said = "Validation loss, logged once in each training: Plain KD 3.021, SRD 2.951."
    text = page(lines)
    assert said in text and "<figcaption>Validation loss" not in text and "distilled yet" not in text
    text = page([*lines, lines[1] | {"step": 18, "passes": 4}])
    assert said not in text and "<figcaption>Validation loss" in text
    losses = [
        {"arm": variant, "stage": 0, "step": step, "passes": step, "loss": 2.0}
        for variant, step in (("kd", 1), ("srd", 1), ("srd", 2))
    ]
    drawn = re.search(r"<figcaption>Training loss.*?</figure>", page(losses), re.DOTALL)
    assert drawn and drawn[0].count("<circle") == 2 + 3  # the legend's, and one for each point


def test_steps_that_took_nearly_no_time_share_a_bar(whole_run: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(whole_run, tmp_path / "quick"))
    manifest = read_json(run_dir / "manifest.json")
    steps = list(manifest["steps"])
    for step in steps:
        manifest["steps"][step]["seconds"] = 0.5 if step in steps[:4] else 100.0
    write_text(run_dir / "manifest.json", json.dumps(manifest))
    labels = re.findall(r'class="bar-label"[^>]*>([^<]*)<', read_page(run_dir).partition('id="time"')[2])
    assert len(labels) == len(steps) - 3 and labels[-1] == "4 steps of less than 1% each"


def test_an_answer_begins_with_its_first_line(tmp_path: Path) -> None:
    """Also where a model begins with blank lines; of nothing but those it says that it is empty."""
    for text, shown in (("\n\n The end.\n", "<p>The end.</p>"), ("\n ", "<p><em>empty</em></p>")):
        made = environment("srd.report").get_template("macros.j2").make_module().text_box("SRD", text, "ours")
        assert shown in made


def test_stage_bands_meet(whole_run: Path) -> None:
    bands = stage_bands(read_run(whole_run).metrics, "srd")
    assert [round(band.end, 6) for band in bands] == [0.75, 2.25, 4.5]
    assert [band.start for band in bands] == [0.0, bands[0].end, bands[1].end]
    assert stage_bands(read_run(whole_run).metrics, "kd") == []
