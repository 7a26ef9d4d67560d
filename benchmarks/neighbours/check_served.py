"""What a server says of texts and writes, beside what the same model says and writes here, in float32.

python -m benchmarks.neighbours.check_served http://127.0.0.1:8000/v1 NAME FOLDER    # the key: TEACHER_API_KEY
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from srd.models.generation import Decoding
from srd.models.loading.loading import load_model, load_tokenizer
from srd.models.served.client import Address
from srd.models.served.endpoint import Endpoint

ANSWER, TOP = 16, 20  # tokens of an answer, and how many of the likeliest are asked for
TEXTS = [
    "The whale, the dolphin and the octopus all live in the sea.", "def f(x):\n    return [i for i in x if i]\n",
    "Größe 日本語 😀 Привет, 12345.", "Why is the sky blue? Because small particles scatter blue light more strongly.",
]  # fmt: skip


def main() -> None:
    endpoint, name, folder = sys.argv[1:4]
    tokenizer = load_tokenizer(folder)
    model: Any = load_model(folder, dtype="float32", tokenizer=tokenizer).eval()
    key = "TEACHER_API_KEY" if os.environ.get("TEACHER_API_KEY") else None
    server = Endpoint(Address(endpoint, name, key), TOP)
    server.check(tokenizer, 64)
    far, listed, tokens, answers = 0.0, 0, 0, 0
    decoding, stop = Decoding(max_new_tokens=ANSWER), [tokenizer.eos_token_id]
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        with torch.no_grad():
            here = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            made = model.generate(torch.tensor([ids]), max_new_tokens=ANSWER, do_sample=False, eos_token_id=stop)
        for row, said in zip(here[:-1], server.say(text, ids, 1).likely, strict=True):
            far = max(far, *(abs(float(row[token]) - value) for token, value in said.items()))
            listed += set(row.topk(TOP).indices.tolist()) <= set(said)
            tokens += 1
        answers += server.write(text, ids, decoding, stop, tokenizer) == made[0, len(ids) :].tolist()
    told = {"tokens": tokens, "largest difference": far, "the same likeliest": listed}
    print(json.dumps({**told, "equal answers": answers, "of": len(TEXTS)}))


if __name__ == "__main__":
    main()
