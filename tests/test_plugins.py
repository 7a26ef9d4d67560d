"""The ordinary mistakes in a plugin: each is told in one message, with the plugin's line and what to write instead."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import srd
from srd.base.plugins import import_plugin
from srd.curation.fusion import FUSIONS
from srd.curation.scores.base import SCORES, Score, ScoreInputs
from srd.models.engines.base import ENGINES, EngineKind, load_by
from srd.training.divergences.base import DIVERGENCES
from srd.training.methods.base import METHODS, Method
from srd.training.methods.common import rollouts_of, schedule_of
from tests.runs import TinyRun

DIVERGENCE = "@srd.register_divergence('of_a_test'{})\ndef of_a_test({}):\n    return log_p"
SCORE = "@srd.register_score('of_a_test'{})\ndef of_a_test({}):\n    return 1"
METHOD = "@srd.register_method('of_a_test')\nclass OfATest({}):\n    {}"
TASK = (
    "class OfATest(srd.Task):\n    {}\n"
    "srd.register_task('of_a_test')({}(name='of_a_test', title='t', licence='l', source='s', primary='a'{}))"
)
SCORES_LIKE = "def score(self, predictions, examples, *, allow_code_execution=False): ..."
ROLLOUTS = "def rollouts(self, seed): ..."

ENGINE, TIER = "srd.models.engines import base", "srd.training.tiers import base"
RULE = "srd.curation.detectors.base import register_rule"
WRONG: dict[str, tuple[str, int, str]] = {  # plugin, the line that is named, what is said
    "divergence of one": (DIVERGENCE.format("", "log_p"), 2, "called with (log_p, log_q), but is written for (log_p)"),
    "no default": (DIVERGENCE.format("", "log_p, log_q, power"), 2, "needs a default for its parameters ['power']"),
    "default of text": (DIVERGENCE.format("", "log_p, log_q, power='a'"), 2, "'power' is 'a', but must be a number"),
    "one-sided range": (DIVERGENCE.format(", ranges={'a': [0]}", "log_p, log_q, a=0"), 2, "give (lowest, highest)"),
    "taken": (DIVERGENCE.format("", "log_p, log_q").replace("'of_a_test'", "'fkl'"), 2, "divergence 'fkl' already"),
    "no name": ("@srd.register_divergence\ndef mine(p, q): ...", 2, 'write @srd.register_divergence("mine")'),
    "no name, score": ("@srd.register_score\ndef mine(inputs): ...", 2, 'write @srd.register_score("mine")'),
    "no name, method": ("@srd.register_method\nclass Mine: ...", 2, 'write @srd.register_method("Mine")'),
    "no name, teacher": ("@srd.register_teacher\nclass Mine: ...", 2, 'write @srd.register_teacher("Mine")'),
    "no name, template": ("@srd.register_template\ndef mine(tokenizer): ...", 2, '@srd.register_template("mine")'),
    "no name, task": ("@srd.register_task\nclass Mine: ...", 2, 'write @srd.register_task("Mine")'),
    "score of two": (SCORE.format("", "inputs, k"), 2, "missing a required argument: 'k'"),
    "column for need": (SCORE.format(", needs=['ce']", "inputs"), 2, "that column is asked for as 'losses'"),
    "harder": (SCORE.format(", harder='hard'", "inputs"), 2, "has harder='hard': say 'high' or 'low'"),
    "no method": (METHOD.format("object", "pass"), 2, "write a class that inherits from srd.Method"),
    "rollouts": (METHOD.format("srd.Method", "def rollouts(self): ..."), 2, "is called with (self, seed)"),
    "writer": (METHOD.format("srd.Method", "text = 'pupil'"), 2, "must be one of reference, teacher, student, both"),
    "text forgotten": (METHOD.format("srd.Method", ROLLOUTS), 2, "add text = 'student'"),
    "rollouts forgotten": (METHOD.format("srd.Method", "text = 'student'"), 2, "add rollouts(seed)"),
    "teacher": ("@srd.register_teacher('of_a_test')\ndef teach(): ...", 2, "is called with (source), but is written"),
    "logits": (
        "@srd.register_teacher('of_a_test')\nclass OfATest(srd.LogitTeacher):\n    def logits(self): ...", 2,
        "OfATest.logits is called with (self, batch), but is written for (self)",
    ),
    "template": (
        "srd.register_template('of_a_test')(srd.FormatTemplate('t', '{instruction}', '{instruction}'))", 2,
        "must be a function of (tokenizer), but is of type FormatTemplate",
    ),
    "another name": (
        TASK.replace("name='of_a_test'", "name='other'").format(SCORES_LIKE, "OfATest", ""), 4,
        "the task 'of_a_test' has name='other'",
    ),
    "class for task": (
        f"@srd.register_task('of_a_test')\nclass OfATest(srd.Task):\n    {SCORES_LIKE}", 2, "the class OfATest: make",
    ),
    "no score": (TASK.format("pass", "OfATest", ""), 4, "has a primary metric, but no score(predictions, examples"),
    "score": (TASK.format("def score(self, predictions, examples): ...", "OfATest", ""), 4, "allow_code_execution=..."),
    "decoding": (TASK.format(SCORES_LIKE, "OfATest", ", decoding={}"), 4, "is of type dict: give srd.Decoding"),
    "no function": ("srd.register_divergence('of_a_test')(3)", 2, "must be a function of (log_p, log_q)"),
    "any parameters": (DIVERGENCE.format("", "log_p, log_q, **more"), 2, "takes **more: write each parameter out"),
    "default outside": (DIVERGENCE.format(", ranges={'a': [0, 1]}", "log_p, log_q, a=2"), 2, "is 2, outside of its"),
    "another word": (DIVERGENCE.format(", bata=0", "log_p, log_q"), 2, "takes no 'bata'; did you mean 'beta'?"),
    "no tokens": ("srd.Decoding(max_new_tokens=0)", 2, "max_new_tokens must be at least 1"),
    "one seed": ("srd.Decoding(seeds=5)", 2, "seeds must be whole numbers from 0, such as (10, 20)"),
    "hot": ("srd.Decoding(temperature='hot')", 2, "temperature must be a number"),
    "engine": (f"from {ENGINE}\nbase.ENGINES.register('of_a_test')(base.EngineKind)", 3, "the class EngineKind: reg"),
    "no load": (
        f"from {ENGINE}\nclass Mine(base.EngineKind): ...\nbase.ENGINES.register('of_a_test')(Mine())", 4,
        "the engine 'of_a_test' has no load(source, longest, options, load_model): write one",
    ),
    "no pack": (
        f"from {TIER}\n@base.TIERS.register('of_a_test')\nclass Mine(base.Tier): ...", 3,
        "the cache tier 'of_a_test' lacks token_bytes, pack, unpack",
    ),
    "tier": (f"from {TIER}\nbase.TIERS.register('of_a_test')(3)", 3, "is 3: register a subclass of srd.training"),
    "detector": (f"from {RULE}\nregister_rule('of_a_test', 'x', least=1)(3)", 3, "must be a function of (responses)"),
    "a library's error": ("class A(srd.Method):\n    max_new_tokens = 4", 2, "non-annotated attribute was detected"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_fault_is_told_when_the_plugin_is_read_with_its_line(case: str, tmp_path: Path) -> None:
    text, line, said = WRONG[case]
    plugin = tmp_path / "mine.py"
    plugin.write_text(f"import srd\n{text}\n", encoding="utf-8")
    with pytest.raises(srd.UserError) as error:
        import_plugin(str(plugin))
    message = str(error.value)
    assert said in message and " UserError:" not in message and "\n" not in message
    assert message.endswith(f"({plugin}, line {line})")
    assert not any("of_a_test" in registry for registry in (DIVERGENCES, SCORES, METHODS))


def divergence(function: Any, **options: Any) -> torch.Tensor:
    srd.register_divergence("of_a_test", **options)(function)
    student = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    return srd.divergence("of_a_test", student, torch.zeros(2, 3))


def root(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p - log_q).abs().sum(-1).sqrt()  # where both agree its slope is 0 / 0


def test_nan_that_a_divergence_makes_is_its_own() -> None:
    with pytest.raises(srd.UserError, match=r"'root' gives NaN, or a gradient that is not finite, at 1 of 2 "):
        divergence(root)


def overlap(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return 1 - ((log_p + log_q) / 2).exp().sum(-1)  # 0 where both agree, or a little beside it


def test_a_root_behind_a_clamp_is_refused_and_the_remedy_that_is_named_works() -> None:
    """At 0 the root's slope is infinite."""
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    student = logits.clone().requires_grad_()
    srd.register_divergence("of_a_test_clamped")(lambda log_p, log_q: overlap(log_p, log_q).clamp(min=0).sqrt())
    with pytest.raises(srd.UserError, match=r"as in \(x\.clamp\(min=0\) \+ 1e-12\)\.sqrt\(\)"):
        srd.divergence("of_a_test_clamped", student, logits)
    divergence(lambda log_p, log_q: (overlap(log_p, log_q).clamp(min=0) + 1e-12).sqrt())
    srd.divergence("of_a_test", student, logits).sum().backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_a_divergence_below_0_is_told_of_and_not_taken_for_0() -> None:
    with pytest.raises(srd.UserError, match=r"is negative at [12] of 2 positions \(down to -"):
        divergence(lambda log_p, log_q: (log_p.exp() * (log_q - log_p)).sum(-1))


def test_an_id_that_both_mask_is_no_fault_of_a_divergence() -> None:
    divergence(lambda log_p, log_q: (log_p.exp().sqrt() - log_q.exp().sqrt()).pow(2).sum(-1))
    student = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    value = srd.divergence("of_a_test", student, torch.tensor([[1.0, 0.0, -torch.inf]]))
    value.sum().backward()
    assert torch.isfinite(value).all() and student.grad is not None and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("gives", [lambda p, q: p.sum(-1), lambda p, q: (p.sum(-1), q.sum(-1))])
def test_a_divergence_gives_its_slope_where_it_says_so(gives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(srd.UserError, match=r"must give a value \[2\] and a slope \[2, 3\]"):
        divergence(lambda log_p, log_q: gives(log_p, log_q), gives_slope=True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (1.0, "but gives one float"),
        ([1, 2], "but gives values of type float64 [2]"),
        (["a", "b", "c"], "but gives values of type <U1 [3]"),
        ([1j, 2, 3], "but gives values of type complex128 [3]"),
        ([[1], [2, 3], 4], "inhomogeneous"),
    ],
)
def test_a_score_that_is_no_column_of_numbers_is_said_to_be_so(values: Any, said: str) -> None:
    inputs = ScoreInputs(pa.table({"id": ["a", "b", "c"]}))
    with pytest.raises(srd.UserError, match="must give one number for each of the 3 examples") as error:
        Score("s", "high", frozenset(), lambda _: values).difficulty(inputs)
    assert said in str(error.value)
    assert Score("s", "high", frozenset(), lambda _: torch.ones(3, requires_grad=True)).difficulty(inputs).sum() == 3


def test_a_column_that_a_score_did_not_ask_for_is_named_with_its_need() -> None:
    with pytest.raises(
        srd.UserError, match=re.escape("inputs['end_nll'], which is not there; ask for it: needs=['endings']")
    ):
        ScoreInputs(pa.table({"id": ["a"]}))["end_nll"]


class Odd(Method):
    """A method that gives numbers for objects."""

    def rollouts(self, seed: int) -> Any:
        return 0.5

    def schedule(self) -> Any:
        return 3


def test_what_a_method_gives_is_looked_at() -> None:
    odd = Odd(name="odd")
    with pytest.raises(srd.UserError, match=r"Odd.rollouts gives is of type float: give srd.OnPolicy"):
        rollouts_of(odd, 1)
    with pytest.raises(srd.UserError, match=r"Odd.schedule gives is of type int: give an instance"):
        schedule_of(odd)
    with pytest.raises(srd.UserError, match="student_share is 7, but must be from 0 to 1"):
        srd.OnPolicy(7)


class Judge(srd.Task):
    """A task that scores as it is told to."""

    said: Any = None

    def score(self, predictions: Any, examples: Any, *, allow_code_execution: Any = False) -> Any:
        return Judge.said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (0.5, "is of type float: give srd.Scores"),
        (srd.Scores({"b": 0.5}, {}, "b"), "gives the metrics ['b'], but primary is 'a'"),
        (srd.Scores({"a": 55.0}, {}, "a"), "gives a = 55.0, but a metric must be a number from 0 to 1"),
        (srd.Scores({"a": float("nan")}, {}, "a"), "gives a = nan, but a metric must be"),
        (srd.Scores({"a": "good"}, {}, "a"), "gives a = 'good', but a metric must be"),  # type: ignore[dict-item]
        (srd.Scores({"a": 1.0}, {"a": np.ones(3)}, "a"), "gives [3] values of a for 2 examples"),
    ],
)
def test_what_a_task_gives_is_looked_at(said: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "said", said)
    with pytest.raises(srd.UserError) as error:
        Judge("j", "t", "l", "s", primary="a").scored(["x", "y"], [1, 2])  # type: ignore[arg-type]
    assert message in str(error.value)


TEACHERS = """import srd
@srd.register_teacher("nan_of_a_test")
class NanOfATest(srd.LogitTeacher):
    def logits(self, batch):
        return super().logits(batch) * float("nan")
@srd.register_teacher("nothing_of_a_test")
class NothingOfATest(srd.LogitTeacher):
    def logits(self, batch):
        return super().logits(batch) - float("inf")
@srd.register_teacher("bare_of_a_test")
class BareOfATest(srd.LogitTeacher):
    def __init__(self, source):
        self.model = source.load()
srd.register_teacher("list_of_a_test")(lambda source: [source])
srd.register_template("text_of_a_test")(lambda tokenizer: "{instruction}")
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher__source": "nothing_of_a_test"}, "NothingOfATest.logits gives NaN or infinity at"),
        ({"teacher__source": "bare_of_a_test"}, "BareOfATest.__init__ must call super().__init__(source)"),
        ({"teacher__source": "nan_of_a_test"}, "NanOfATest.logits gives NaN or infinity at"),
        ({"teacher__source": "list_of_a_test"}, "what teacher.source=list_of_a_test gives is of type list"),
        ({"data__template": "text_of_a_test"}, "'text_of_a_test' makes of a tokenizer is of type str"),
    ],
)
def test_what_a_run_is_given_is_looked_at(
    changes: dict[str, str], said: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plugin = tmp_path_factory.getbasetemp() / "given_plugin.py"  # one file, which is imported once
    plugin.write_text(TEACHERS, encoding="utf-8")
    tiny = TinyRun(tmp_path).set(plugins=[str(plugin)], training__curriculum=None, **changes)
    with pytest.raises(srd.UserError) as error:
        srd.run(tiny.recipe, run_dir=tiny.run_dir)
    assert said in str(error.value)


@pytest.mark.parametrize("kind", ["score", "divergence", "method", "fusion"])
def test_what_an_entry_point_names_is_looked_at(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare function is not what is registered: its settings are missing."""
    registry: Any = {"score": SCORES, "divergence": DIVERGENCES, "method": METHODS, "fusion": FUSIONS}[kind]
    point = EntryPoint("of_a_test", "json:dumps", f"srd.{kind}s")
    monkeypatch.setitem(vars(registry), "_entry_points", {"of_a_test": point})
    said = "is called with (ranks, k)" if kind == "fusion" else f"name a module that calls srd.register_{kind}"
    with pytest.raises(srd.UserError) as error:
        registry.get("of_a_test")
    assert f"the {kind} 'of_a_test'" in str(error.value) and said in str(error.value)


def test_an_engine_that_loads_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(EngineKind):
        def load(self, *given: Any) -> Any:
            given[-1]()  # and forgets to return it

    monkeypatch.setitem(ENGINES._registered, "of_a_test", Mine())
    loaded: list[str] = []
    with pytest.raises(srd.UserError, match=r"^the engine 'of_a_test' has loaded nothing: its load returns None"):
        load_by("of_a_test", "a folder", 8, {}, lambda: loaded.append("it"))
    assert loaded == ["it"]
    assert load_by("transformers", "a folder", 8, {}, lambda: "a model") == "a model"


def test_a_plugin_that_was_changed_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that a script has imported by itself, and one that failed; helpers beside it, too."""
    monkeypatch.syspath_prepend(tmp_path)
    plugin, helper = tmp_path / "plugin_of_a_test.py", tmp_path / "helper_of_a_test.py"
    text = (
        "import srd, helper_of_a_test\n@srd.register_score('of_a_test')\ndef of_a_test(inputs):\n"
        "    return [{} * helper_of_a_test.FACTOR]\n"
    )

    def given(number: int, factor: int) -> float:
        plugin.write_text(text.format(number), encoding="utf-8")
        helper.write_text(f"FACTOR = {factor}\n", encoding="utf-8")
        import_plugin(str(plugin))
        inputs: Any = ScoreInputs(pa.table({"id": ["a"]}))
        return float(SCORES.get("of_a_test").compute(inputs)[0])

    assert (given(1, 1), given(2, 1), given(2, 3)) == (1, 2, 6)
    plugin.write_text(text.format(2) + "broken", encoding="utf-8")
    with pytest.raises(srd.UserError, match="line 5"):
        import_plugin(str(plugin))
    assert given(4, 3) == 12
    importlib.import_module("plugin_of_a_test")
    assert given(5, 1) == 5
