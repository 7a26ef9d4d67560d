"""TRL takes a curated folder in order, on the recipe's own tokens, and its GKD loss has the temperature of each stage.

python -m benchmarks.neighbours.check_trl WORK    # WORK/trl: of `srd curate --for trl`; WORK/student, WORK/teacher
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from srd.integrations.trl import StageCallback, StagedGKDTrainer, curriculum_dataset

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "trl.md"
CPU: dict[str, Any] = {
    "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
    "max_length": 256, "disable_tqdm": True, "logging_steps": 1, "train_sampling_strategy": "sequential",
    "num_train_epochs": 1,
}  # fmt: skip


def check_order(work: Path) -> dict[str, Any]:
    """The loader of SFTTrainer gives the rows of the file, first to last, with the recipe's tokens and labels."""
    rows = load_dataset(str(work / "trl"), split="train")
    args = SFTConfig(output_dir=str(work / "out"), per_device_train_batch_size=4, **CPU)
    trainer = SFTTrainer(str(work / "student"), args=args, train_dataset=rows)
    place = 0
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            row, place = rows[place], place + 1
            wanted = [t if own else -100 for t, own in zip(row["input_ids"], row["completion_mask"], strict=True)]
            length = len(wanted)
            assert ids[:length].tolist() == row["input_ids"] and labels[:length].tolist() == wanted, row["id"]
    assert place == len(rows)
    return {"rows in order": place}


def check_text(work: Path) -> dict[str, Any]:
    """Without the tokens TRL makes the same ones of `prompt` and `completion`."""
    rows = load_dataset(str(work / "trl"), split="train")
    bare = rows.select_columns(["prompt", "completion"])
    args = SFTConfig(output_dir=str(work / "out"), **CPU)
    made = SFTTrainer(str(work / "student"), args=args, train_dataset=bare).train_dataset
    same = sum(ours == theirs for ours, theirs in zip(rows["input_ids"], made["input_ids"], strict=True))
    return {"rows whose tokens TRL makes itself": f"{same} of {len(rows)}"}


def check_command(work: Path) -> dict[str, Any]:
    """`trl sft` takes a stage by its name."""
    command = [
        str(Path(sys.executable).parent / "trl"), "sft", "--model_name_or_path", str(work / "student"),
        "--dataset_name", str(work / "trl"), "--dataset_config", "stage_0", "--completion_only_loss", "true",
        "--train_sampling_strategy", "sequential", "--bf16", "false", "--use_cpu", "true",
        "--gradient_checkpointing", "false", "--max_length", "256", "--report_to", "none", "--max_steps", "1",
        "--output_dir", str(work / "out" / "cli"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {"trl sft": "0"}


def check_page(work: Path) -> dict[str, Any]:
    """The two scripts of the folder, and the tutorial's own with the models of this run, as they stand."""
    folder = work / "out" / "page"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "trl", folder / "curated")
    text = PAGE.read_text(encoding="utf-8")
    for name, model in (("Qwen/Qwen2.5-0.5B-Instruct", "student"), ("Qwen/Qwen2.5-1.5B-Instruct", "teacher")):
        text = text.replace(name, str(work / model))
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (folder / "gkd.py").write_text("\n".join(blocks), encoding="utf-8")
    scripts = ("curated/train_sft.py", "curated/train_gkd.py", "gkd.py")
    for script in scripts:
        done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}: {done.stderr[-2000:]}"
    return {"scripts that run as they stand": len(scripts)}


def models(work: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(work / "student")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    student, teacher = (AutoModelForCausalLM.from_pretrained(work / name) for name in ("student", "teacher"))
    return {"model": student, "teacher_model": teacher, "processing_class": tokenizer}


def gkd_args(work: Path) -> GKDConfig:
    return GKDConfig(output_dir=str(work / "out" / "gkd"), per_device_train_batch_size=4, lmbda=0.0, beta=0.0, **CPU)


def check_stages(work: Path) -> dict[str, Any]:
    """Each step has the temperature of its stage, in the loss too: its first one is worked out here once more."""
    rows = curriculum_dataset(work / "trl", batch_size=4)
    trainer = StagedGKDTrainer(args=gkd_args(work), train_dataset=rows, **models(work))
    first = next(iter(trainer.get_train_dataloader()))
    losses = {}
    for _, temperature, weight in dict.fromkeys(trainer.stages.plan):
        trainer.stages.temperature, trainer.stages.weight = temperature, weight
        trainer.stages.stage = -1
        step = sum(steps for steps, t, _ in trainer.stages.plan if t < temperature)
        trainer.stages._take(step)
        ours = float(trainer.compute_loss(trainer.model, dict(first)).detach())
        losses[temperature] = (ours, by_hand(trainer, first, temperature, weight))
        assert abs(ours - losses[temperature][1]) < 1e-5, losses
    trainer.stages.stage = -1
    trainer.train()
    seen = [(log["stage"], log["temperature"]) for log in trainer.state.log_history if "loss" in log]
    planned = [(n, t) for n, (steps, t, _) in enumerate(trainer.stages.plan) for _ in range(steps)]
    assert seen == planned, (seen, planned)
    return {"temperatures by step": [t for _, t in seen], "losses (TRL, by hand)": losses}


def by_hand(trainer: Any, batch: dict[str, Any], temperature: float, weight: float) -> float:
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        student, teacher = (m(**inputs).logits[:, :-1].double() for m in (trainer.model, trainer.teacher_model))
    labels = batch["labels"][:, 1:]
    mine, own = labels[labels != -100], labels != -100
    p, q = (torch.log_softmax(logits[own] / temperature, -1) for logits in (teacher, student))
    divergence = (p.exp() * (p - q)).sum(-1).mean() * temperature**2
    ce = torch.nn.functional.cross_entropy(student[own], mine)
    return float(weight * divergence + (1 - weight) * ce)


def check_callback(work: Path) -> dict[str, Any]:
    """TRL's own GKDTrainer with the callback alone: another temperature, another loss."""
    rows = curriculum_dataset(work / "trl", batch_size=4)
    plan = [(2, 1.0), (2, 4.0)]
    trainer = GKDTrainer(args=gkd_args(work), train_dataset=rows.select(range(16)), **models(work))
    callback = StageCallback(plan)
    trainer.add_callback(callback.bind(trainer))
    trainer.train()
    seen = [log["temperature"] for log in trainer.state.log_history if "loss" in log]
    assert seen == [1.0, 1.0, 4.0, 4.0], seen
    return {"GKDTrainer with StageCallback": seen}


def main() -> None:
    work = Path(sys.argv[1]).resolve()
    found: dict[str, Any] = {"trl": trl.__version__, "transformers": transformers.__version__}
    for check in (check_order, check_text, check_stages, check_callback, check_command, check_page):
        found |= check(work)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
