"""The teacher's likeliest tokens in other distillers' layouts: what they decode, and where they look for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from srd.base.errors import UserError
from srd.base.remedies import collecting
from srd.export.base import Settings, export
from srd.export.formats.axolotl_kd import BETAS
from srd.export.formats.distillkit import index_bits, pack_bits
from srd.export.topk import nearest_beta
from srd.recipe.reading import validate_recipe
from tests.runs import TinyRun, tiny_rows, write_rows

pytestmark = pytest.mark.xdist_group("taught")  # one worker makes the cache that all of these read

K = 16


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyRun, Any]:
    """A run with its teacher's cache, and the teacher."""
    tiny = TinyRun(tmp_path_factory.mktemp("taught"))
    tiny.set(generation__max_new_tokens=2, training__curriculum={"temperature": [1.0, 3.0]})
    tiny.set(teacher__dtype="float32", cache__dtype="float32")
    tiny.advance("ranking", "cache")
    return tiny, AutoModelForCausalLM.from_pretrained(tiny.teacher, dtype=torch.float32).eval()


@torch.no_grad()
def teacher_logits(teacher: Any, ids: list[int]) -> torch.Tensor:
    """What the teacher says of the token behind each position, ``[T, V]``."""
    return teacher(torch.tensor([ids])).logits[0].double()


def axolotl_loss(logits: torch.Tensor, row: dict[str, Any], temperature: float, shift: int = 0) -> float:
    """Axolotl's kernel in float64: labels are shifted, targets are not; forward KL of both, normalised over the k."""
    tokens, logprobs, mask = (
        torch.tensor(row[name]).roll(shift, 0) for name in ("target_token_ids", "target_logprobs", "target_mask")
    )
    student = (logits / temperature).gather(-1, tokens)
    student = student - student.logsumexp(-1, keepdim=True)
    valid = mask.bool()
    return float((logprobs.double().exp() * (logprobs.double() - student))[valid].sum()) * temperature**2


def test_axolotl_finds_each_distribution_where_it_predicts_from(taught: tuple[TinyRun, Any], tmp_path: Path) -> None:
    tmp_path /= "braces {} are no places"
    tiny, teacher = taught
    export(tiny.run_dir, "axolotl-kd", tmp_path, Settings(top_k=K))
    for stage, temperature in enumerate((1.0, 2.0, 3.0)):
        settings = yaml.safe_load((tmp_path / f"axolotl_kd_stage_{stage}.yaml").read_text())
        assert settings["kd_temperature"] == temperature and settings["curriculum_sampling"] is True
        assert settings["kd_alpha"] + settings["kd_ce_alpha"] == pytest.approx(1)
        for row in pq.read_table(tmp_path / f"stage_{stage}.parquet").to_pylist()[:4]:
            logits = teacher_logits(teacher, row["input_ids"])
            assert abs(axolotl_loss(logits, row, temperature)) < 1e-4
            assert all(axolotl_loss(logits, row, temperature, shift) > 0.05 for shift in (-1, 1))
            shifted = [*row["labels"][1:], -100]  # as the kernel does
            assert [own[0] for own in row["target_mask"]] == [int(label != -100) for label in shifted]
            assert np.exp(row["target_logprobs"]).sum(1) == pytest.approx(np.array(row["target_mask"])[:, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("objective", "beta", "told"),
    [("fkl", 0, ""), ("rkl", 1, "distillkit"), ("srkl", 1, "both"), ("tvd", 0, "both"), ("jsd", 0, "both"),
     ({"name": "jsd", "lam": 0.1}, 1, "both")],
)  # fmt: skip
def test_a_divergence_that_a_trainer_has_not_is_told(
    objective: Any, beta: float, told: str, taught: tuple[TinyRun, Any], tmp_path: Path
) -> None:
    recipe = validate_recipe({**taught[0].recipe, "training": {"objective": objective}}, "tiny")
    found, exact = nearest_beta(recipe, BETAS)
    assert (found, exact) == (beta, told != "both")
    assert nearest_beta(recipe, [0.0]) == (0, told == "")


def test_the_targets_of_a_memorised_sequence_are_its_next_tokens(taught: tuple[TinyRun, Any], tmp_path: Path) -> None:
    """A teacher that knows the text by heart: the likeliest token of row i is the label behind it."""
    from srd.export.formats.axolotl_kd import targets
    from srd.export.topk import Taught

    ids, labels = [5, 6, 7, 8, 2], [-100, -100, 7, 8, 2]
    known = np.array([[7, 1], [8, 1], [2, 1]])
    row = targets(Taught(ids, labels, np.array([1, 2, 3]), known, np.log([[0.75, 0.25]] * 3).astype(np.float32)), 2)
    shifted = [*labels[1:], -100]
    assert [t[0] for t, m in zip(row["target_token_ids"], row["target_mask"], strict=True) if m[0]] == [7, 8, 2]
    assert [label for label in shifted if label != -100] == [7, 8, 2]


def test_softened_rows_are_not_exported(tmp_path: Path) -> None:
    """Their labels would be learnt, which the recipe's own training does not."""
    tiny = TinyRun(tmp_path)
    loops = [{"instruction": f"Count to {n}.", "output": f"{n} one two " * 8} for n in range(9)]
    write_rows(tiny.rows, [*tiny_rows(), *loops])
    tiny.set(data__cleaning={"action": "soften", "find": ["looping"]}, generation__max_new_tokens=2)
    tiny.set(training__curriculum={"stages": 2, "select": 1})
    tiny.advance("ranking", "cache")
    export(tiny.run_dir, "axolotl-kd", tmp_path / "out", Settings(top_k=2))
    wrong = pq.read_table(tiny.run_dir / "cleaning/rows.parquet")["wrong"].to_pylist()
    assert sum(wrong) > 1 and len(pq.read_table(tmp_path / "out/stage_1.parquet")) == len(wrong) - sum(wrong)


def test_lora_is_a_setting_or_told(tmp_path: Path) -> None:
    """As where rows are curated: Axolotl's configuration has it, and DistillKit has none."""
    tiny = TinyRun(tmp_path)
    tiny.set(generation__max_new_tokens=2, training__lora={"r": 3, "targets": ["q_proj"]})
    tiny.advance("ranking", "cache")
    for target in ("axolotl-kd", "distillkit"):
        with collecting() as told:
            export(tiny.run_dir, target, tmp_path / target, Settings(top_k=2))
        said = ["DistillKit is told to train all weights" in warning.what for warning in told.warnings]
        assert any(said) == (target == "distillkit")
    first, then = (yaml.safe_load((tmp_path / f"axolotl-kd/axolotl_kd_stage_{n}.yaml").read_text()) for n in (0, 1))
    for settings in (first, then):
        assert (settings["adapter"], settings["lora_r"], settings["lora_target_modules"]) == ("lora", 3, ["q_proj"])
        assert settings["max_grad_norm"] == 1.0 and settings["base_model"] == first["base_model"]
    assert "lora_model_dir" not in first and then["lora_model_dir"] == first["output_dir"]


def decoded(row: dict[str, Any], bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes as DistillKit takes them apart: float32 values, and indices of some bits, the highest first."""
    values = np.array(row["compressed_logprobs"], np.uint8).view("<f4")
    single = np.unpackbits(np.array(row["bytepacked_indices"], np.uint8), axis=1)[:, : values.shape[1] * bits]
    return single.reshape(*values.shape, bits) @ (2 ** np.arange(bits - 1, -1, -1)), values


def test_distillkits_bytes_decode_to_the_heads_log_softmax(taught: tuple[TinyRun, Any], tmp_path: Path) -> None:
    tiny, teacher = taught
    export(tiny.run_dir, "distillkit", tmp_path, Settings(top_k=K))
    settings = yaml.safe_load((tmp_path / "distillkit_stage_1.yaml").read_text())
    compressor, length = settings["teacher"]["logprob_compressor"], settings["sequence_length"]
    assert compressor["delta_encoding"] is False and compressor["exact_k"] == compressor["k"] == K
    assert settings["dataset"]["prepacked"] is True and settings["dataset"]["seed"] is None
    assert settings["loss_functions"][-1]["temperature"] == 2.0
    assert settings["training_args"]["remove_unused_columns"] is False
    table = pq.read_table(tmp_path / "stage_1" / "data_0.parquet")
    assert table.column_names == ["input_ids", "attention_mask", "labels", "compressed_logprobs", "bytepacked_indices"]
    for row in table.to_pylist()[:4]:
        assert {len(values) for values in row.values()} == {length}
        tokens, values = decoded(row, index_bits(compressor["d"]))
        real = sum(row["attention_mask"])
        expected = torch.log_softmax(teacher_logits(teacher, row["input_ids"][:real]), -1)
        learnt = [place for place in range(1, real) if row["labels"][place] != -100]
        for place in learnt:  # row i is for token i + 1
            found = expected[place - 1]
            np.testing.assert_allclose(values[place - 1], found[tokens[place - 1]], atol=5e-6)
            np.testing.assert_allclose(values[place - 1], found.topk(K).values, atol=5e-6)
        assert all(len(set(row)) == K for row in tokens.tolist())
        assert tokens[learnt[-1], 0] == 2 and values[learnt[-1], 0] == 0  # behind the end there is the end


def test_stages_follow_the_curriculum_and_bits_are_packed_highest_first(
    taught: tuple[TinyRun, Any], tmp_path: Path
) -> None:
    tiny, _ = taught
    paths, then = export(tiny.run_dir, "distillkit", tmp_path, Settings(top_k=2))
    assert [path.relative_to(tmp_path).as_posix() for path in paths[:2]] == [
        "stage_0/data_0.parquet", "distillkit_stage_0.yaml"
    ]  # fmt: skip
    ranked = pq.read_table(tiny.run_dir / "curriculum/ranked.parquet").sort_by("rank").to_pylist()
    counts = [len(pq.read_table(tmp_path / f"stage_{stage}/data_0.parquet")) for stage in range(3)]
    assert counts == [sum(0 <= row["stage"] <= stage for row in ranked) for stage in range(3)]
    assert "shuffles the rows within a stage" in then
    assert pack_bits(np.array([[1, 2, 7]]), 3).tolist() == [[0b00101011, 0b10000000]]
    assert [index_bits(size) for size in (2, 3, 400, 512, 513, 49152)] == [1, 2, 9, 9, 10, 16]
    assert json.loads((tmp_path / "srd-export-distillkit.json").read_text())["format"] == "DistillKit"


UNTAUGHT = {
    "no cache": ({"cache__enabled": False}, r"keeps no cache of its teacher.*cache\.enabled=true"),
    "no whole distributions": ({"cache__tier": "topk"}, r"cache\.tier is topk.*cache\.tier=exact"),
}


@pytest.mark.parametrize("case", UNTAUGHT)
def test_a_run_without_the_teachers_distributions_is_refused(case: str, tmp_path: Path) -> None:
    settings, message = UNTAUGHT[case]
    tiny = TinyRun(tmp_path)
    tiny.set(**settings).advance("examples")
    with pytest.raises(UserError, match=message):
        export(tiny.run_dir, "axolotl-kd", tmp_path / "out")
