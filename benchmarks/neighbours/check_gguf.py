"""transformers reads the exported GGUF file as the same model: logits and token ids.

python -m benchmarks.neighbours.check_gguf WORK    # WORK/gguf/*-f32.gguf and WORK/run/student
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main() -> None:
    work = Path(sys.argv[1]).resolve()
    rows = [json.loads(line) for line in (work / "lmeval" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    (path,) = (work / "gguf").glob("*-f32.gguf")
    source: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    own, own_tokenizer = (
        kind.from_pretrained(work / "run" / "student") for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    largest, same = 0.0, 0
    for row in rows:
        ids = own_tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        same += ids == tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        logits = [each.eval()(torch.tensor([ids])).logits for each in (own, model)]
        largest = max(largest, float((logits[0] - logits[1]).abs().max()))
    assert largest <= 1e-5 and same == len(rows), (largest, same)
    print(json.dumps({"transformers": transformers.__version__, "largest difference": largest, "same ids": same}))


if __name__ == "__main__":
    main()
