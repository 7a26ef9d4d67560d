"""What ranks: scores by name rank as they always have, several are fused, and a plugin adds one by a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

import srd
from srd.base.errors import UserError
from srd.base.plugins import import_plugin
from srd.curation.scores.base import asks_student

# Ranked before scores were files: what a name means must not change.
STORED = {
    "fused": "e09 e14 e15 e05 e01 e03 e02 e04 e00 e10 e12 e08 e07 e11 e06 e13",
    "rouge_l": "e09 e14 e15 e00 e01 e10 e02 e04 e07 e12 e11 e08 e03 e05 e06 e13",
    "ce": "e05 e03 e09 e14 e15 e02 e04 e01 e08 e11 e12 e00 e07 e10 e06 e13",
    "length": "e00 e04 e05 e06 e10 e15 e03 e07 e08 e14 e01 e11 e13 e12 e02 e09",
    "random": "e00 e04 e09 e07 e01 e10 e12 e05 e06 e11 e03 e13 e08 e14 e02 e15",
}

#: What the paper's preset makes of sixteen rows, worked out by counting, without this library. Values tie in ROUGE-L
#: and in cross-entropy, and `item` and `octopus` in their fused rank.
PAPERS = [
    ("canyon", 1.0, 0.75, 1.5, 3.5, 0.03200819409768901, 1, True, 0),
    ("item", 0.75, 1.25, 3.5, 6.0, 0.030899546647578144, 2, True, 0),
    ("octopus", 0.5, 0.75, 6.0, 3.5, 0.030899546647578144, 3, True, 0),
    ("whale", 0.5, 1.25, 6.0, 6.0, 0.030303030303030304, 4, True, 0),
    ("valley", 0.75, 2.25, 3.5, 9.0, 0.0302407851192514, 5, True, 1),
    ("sky", 0.25, 0.5, 11.0, 2.0, 0.03021353930031804, 6, True, 1),
    ("apple", 1.0, 3.0, 1.5, 13.0, 0.02995879273861232, 7, True, 1),
    ("river", 0.5, 2.0, 6.0, 8.0, 0.029857397504456328, 8, True, 1),
    ("harbour", 0.0, 0.25, 14.5, 1.0, 0.029816261414897127, 9, True, 2),
    ("forest", 0.3333333333333333, 1.25, 8.5, 6.0, 0.029750055297500553, 10, True, 2),
    ("island", 0.3333333333333333, 2.875, 8.5, 12.0, 0.02848742903487429, 11, True, 2),
    ("dolphin", 0.25, 2.5, 11.0, 10.5, 0.02826890420537409, 12, True, 2),
    ("box", 0.0, 2.5, 14.5, 10.5, 0.027607215955066877, 13, False, -1),
    ("desert", 0.25, 3.5, 11.0, 14.0, 0.027598020555767037, 14, False, -1),
    ("list", 0.0, 4.125, 14.5, 15.0, 0.026756152125279643, 15, False, -1),
    ("meadow", 0.0, 5.0, 14.5, 16.0, 0.026580713528788415, 16, False, -1),
]


def some_rows() -> list[dict[str, Any]]:
    """Rows with many ties."""
    random = np.random.default_rng(5)
    return [
        {
            "id": f"e{i:02d}",
            "rouge_l": float(random.integers(0, 6)) / 5,
            "ce": float(random.integers(0, 7)) / 3,
            "length": int(random.integers(1, 6)),
        }
        for i in range(16)
    ]


@pytest.mark.parametrize("by", STORED)
def test_a_name_ranks_as_it_always_has(by: str) -> None:
    assert " ".join(srd.rank(some_rows(), by=by, seed=3, k=10)["id"][:]) == STORED[by]


def test_ranks_selection_and_stages_of_the_paper_to_the_last_bit() -> None:
    paper = srd.Curriculum(preset="paper")
    rows = [{"id": name, "rouge_l": rouge_l, "ce": ce} for name, rouge_l, ce, *_ in sorted(PAPERS)]
    made = paper.assign(srd.rank(rows, k=paper.k, by=paper.score, fusion=paper.fusion))
    assert made.column_names == ["id", "rouge_l", "ce", "rank_rouge", "rank_ce", "rrf", "rank", "kept", "stage"]
    assert [tuple(row.values()) for row in made] == PAPERS
    assert made.to_list() == srd.Curriculum().assign(srd.rank(rows)).to_list()


def test_several_scores_are_fused_by_their_ranks() -> None:
    rows = some_rows()
    assert srd.rank(rows, by=["rouge_l", "ce"]).to_list() == srd.rank(rows, by="fused").to_list()
    assert srd.rank(rows, by=["ce"]).to_list() == srd.rank(rows, by="ce").to_list()
    ranks = np.stack([
        scipy.stats.rankdata([-row["rouge_l"] for row in rows]),
        scipy.stats.rankdata([row["ce"] for row in rows]),
        scipy.stats.rankdata([row["length"] for row in rows]),
    ])  # fmt: skip
    difficulties = {"rrf": -(1 / (60 + ranks)).sum(0), "mean_rank": ranks.mean(0), "max_rank": ranks.max(0)}
    for fusion, difficulty in difficulties.items():
        ranked = srd.rank(rows, by=["fused", "length"], fusion=fusion)
        in_order = [round(float(difficulty[int(name[1:])]), 9) for name in ranked["id"]]
        assert in_order == sorted(in_order), fusion


def test_the_order_in_which_scores_are_named_changes_nothing() -> None:
    """Rows with the same ranks by other scores are a tie, and go by id: no rounding decides."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        numbers = draw.integers(0, 4, (9, 4)) / 4
        rows = [{"id": str(i), **dict(zip(("rouge_l", "ce", "length", "end_nll"), row, strict=True))}
                for i, row in enumerate(numbers.tolist())]  # fmt: skip
        for fusion in ("rrf", "mean_rank", "max_rank"):
            found = {tuple(srd.rank(rows, by=by, fusion=fusion)["id"])
                     for by in (["rouge_l", "ce", "length", "eos"], ["eos", "length", "ce", "rouge_l"])}  # fmt: skip
            assert len(found) == 1, (fusion, rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "rogue_l"}, "unknown score 'rogue_l' to rank by; did you mean 'rouge_l'"),
        ({"by": ["ce", "fusd"]}, "unknown score 'fusd' to rank by; did you mean 'fused'"),
        ({"by": []}, "there is no score to rank by. Known: ce, eos, fused"),
        ({"by": ["fused", "ce"]}, "the score 'ce' is there twice"),
        ({"fusion": "rff"}, "unknown fusion 'rff'; did you mean 'rrf'"),
    ],
)
def test_wrong_names(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        srd.rank(some_rows(), **settings)
    key = "score" if "by" in settings else "fusion"
    with pytest.raises(ValueError, match=message):
        srd.Curriculum(**{key: settings.get("by", settings.get("fusion"))})


def test_which_scores_ask_the_student() -> None:
    asked = {by: asks_student(by) for by in ("fused", "rouge_l", "ce", "length", "random")}
    assert asked == {"fused": True, "rouge_l": True, "ce": True, "length": False, "random": False}
    assert asks_student(["length", "ce"])


PLUGIN = """
import srd

@srd.register_score("both", needs=["losses", "lengths"])
def both(inputs):
    return inputs["ce"] * inputs["length"]

@srd.register_score("reversed", harder="low", needs=["losses"])
def reversed_losses(inputs):
    return inputs["ce"]

@srd.register_score("broken")
def broken(inputs):
    return [float("nan")] * 16
"""


def test_a_plugin_adds_scores(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    import_plugin(str(tmp_path / "plugin.py"))
    rows = some_rows()
    difficulty = {row["id"]: row["ce"] * row["length"] for row in rows}
    assert srd.rank(rows, by="both")["id"][:] == sorted(difficulty, key=lambda name: (difficulty[name], name))
    assert srd.rank(rows, by="reversed")["ce"][:] == sorted((row["ce"] for row in rows), reverse=True)
    assert srd.Curriculum(score=["fused", "both"], fusion="max_rank").score == ["fused", "both"]
    with pytest.raises(UserError, match=r"16 of 16 examples have a score that is not finite: .*score broken nan"):
        srd.rank(rows, by="broken")
    for taken in ("fused", "ce", "both"):
        with pytest.raises(UserError, match=f"there is a score '{taken}' already"):
            srd.register_score(taken)(len)
    with pytest.raises(UserError, match="the score 'new' needs 'loss'; did you mean 'losses'"):
        srd.register_score("new", needs=["loss"])
