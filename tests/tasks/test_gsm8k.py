"""Which number of a solution is the final one, and when it is right."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from datasets import Dataset

from srd.base.errors import UserError
from srd.tasks.base import get_task
from srd.tasks.gsm8k import final_number

SOLUTIONS = [
    ("2+2 = <<2+2=4>>4\n#### 4", 4),
    ("<think>The answer is 5.\n#### 5</think>\nThe answer is 4.", 4),
    ("<think>#### 5</think> 4 <think>6", 4),
    ("<THINKING>\n#### 5\n</THINKING>\\boxed{4}", 4),
    ("[THINK]5[/THINK]It is 4.", 4),
    ("#### 5? No, 6.\n</think>\n\n#### 4", 4),
    ("<think>5 <think>6</think> 7</think> 4", 4),
    ("<|begin_of_thought|>5<|end_of_thought|> so 4", 4),
    ("<think>\nThe answer is 4", None),
    ("<|channel|>analysis<|message|>#### 5<|end|><|start|>assistant<|channel|>final<|message|>#### 6", 6),
    ("analysisWe need 5.\n#### 5assistantfinal#### 6", 6),
    ("analysisWe need 5.\n#### 5", None),
    ("analysis of the 5 apples:\n#### 6", 6),
    ("◁think▷#### 5◁/think▷#### 6", 6),
    ("if 3 < think > 2, then 4", 4),
    ("#### 1,234,500", 1_234_500),
    ("#### 1,00,000", 100_000),
    ("#### -5", -5),
    ("#### $18.50", "18.5"),
    ("####18", 18),
    ("#### 7 eggs, not 9\n#### 9", 7),
    ("### Plan\n#### Step 1: think\n\n#### 7", 7),
    ("so 13*2 = $<<13*2=26>>26\nA: 26", 26),
    ("A: 35,750", 35_750),
    ("for the rest he pays 5 * 1/2 = $<<5*1/2=2.5>>2.5\nand for the next 5 * 1", None),
    (r"thus \boxed{41} and finally \boxed{42}.", 42),
    (r"\boxed{\frac{1}{2}}", "1/2"),
    (r"\boxed{1{,}000}", 1000),
    (r"\boxed{\$5}", 5),
    (r"\boxed{x}", None),
    (r"\boxed{\frac12}", "1/2"),
    (r"\boxed{-\frac12}", "-1/2"),
    (r"\boxed{2\frac{1}{2}}", "5/2"),
    (r"\boxed{x = 4}", 4),
    (r"\boxed{20 - 5 = 15}", 15),
    ("#### 20 + 5 = 25", 20),
    ("The answer is 20 - 5 = 15.", 15),
    ("The answer is 5*3=15", 15),
    ("The answer is 5 x 3 = 15 miles, 2 more.", 15),
    ("The answer is 20 apples - 5 apples = 15 apples.", 15),
    ("The answer is $20 - $5 = $15.50.", "31/2"),
    (r"The answer is \(2 \times (3 + 4) = 14\).", 14),
    ("The answer is 2*3 + 4 = 6 + 4 = 10", 10),
    ("The answer is 15 = 20 - 5.", 15),
    ("The answer is x = 12.", 12),
    ("The answer is 3 - 7 = -4", -4),
    ("The answer is 10/4 = 2 1/2 pies", "5/2"),
    ("The answer is 12 because 3*5 = 15.", 12),
    ("The answer is 12 (not 20 - 5 = 15).", 12),
    ("The answer is 5, and 2 + 2 = 4.", 5),
    ("The answer is 2 1/2", "5/2"),
    ("The answer is minus 4", -4),
    ("It is negative $4.", -4),
    ("10 minus 4", 4),
    ("The answer is 1e3.", 1000),
    ("1.5e-1", "3/20"),
    ("In 2020 1/2 of them", "1/2"),
    ("2 5/3", "5/3"),
    ("The answer is: **7** eggs, of 12.", 7),
    ("The final answer is \\(12\\), which is 1 dozen.", 12),
    ("The answer is $1,234.", 1234),
    ("the answer is twelve, i.e. 12", 12),
    ("**Answer: 18** (12 in box 1 and 6 in box 2)", 18),
    ("**Answer**: $18.00, of 20", 18),
    ("Answer: 12\nWait.\nANSWER: 18 eggs, not 12", 18),
    ("### Final Answer\n\n**18** eggs (12 + 6)", 18),
    ("<answer>18</answer> 12 and 6", 18),
    ("The answer would be 18, as 12 and 6", 18),
    ("So the final answer is therefore $18$ (12 and 6)", 18),
    ("Answer: x = 12. So 5", 12),
    ("## Answer\n\n48/2 = 24\n48 + 24 = 72", 72),
    ("Answer:\n1. She has 16 - 3 = 13.\n**2.** She earns 13 * 2 = 26.", 26),
    ("Answer: She had 16, and has 13.", 13),
    ("To answer 5 questions she needs 7", 7),
    ("They have 3,4 and 5,400 in all.", 5400),
    ("He has 3,4", 4),
    ("It is 100%.", 100),
    ("-$3", -3),
    ("$-3", -3),
    ("\u22123", -3),
    ("16-9", 9),
    ("16 - 9", 9),
    ("#### 1. First we do 3+4=7\n#### 2. Then 7*2 = 14\nThe answer is 14.", 14),
    ("#### 1) Add\n3+4=7\n#### 7", 7),
    ("#### 7.\nDone.", 7),
    ("A: 5 pages\nB: 7 pages\nThe answer is 12.", 12),
    ("A: 5 pages. That is all.", 5),
    (".5", "1/2"),
    ("1/2", "1/2"),
    ("7/0", 7),
    ("no number", None),
    ("", None),
    ("9" * 5000, None),
]


@pytest.mark.parametrize(("text", "number"), SOLUTIONS)
def test_final_number(text: str, number: int | str | None) -> None:
    assert final_number(text) == (None if number is None else Fraction(number))


def test_numbers_are_compared_by_value() -> None:
    examples = Dataset.from_list([{"references": [f"so\n#### {number}"]} for number in ("1,000", "3", "3")])
    scores = get_task("gsm8k").score(["#### 1000.00", "about 3.5", "I do not know"], examples)
    assert scores.per_example["accuracy"].tolist() == [1.0, 0.0, 0.0]
    assert scores.metrics == {"accuracy": pytest.approx(1 / 3)}


def test_reference_without_a_number_is_an_error() -> None:
    with pytest.raises(UserError, match=r"reference 1 has no final number.*####"):
        get_task("gsm8k").score(["1"], Dataset.from_list([{"references": ["none"]}]))


def test_a_reference_without_a_number_is_told_when_the_file_is_read(tmp_path: Path) -> None:
    """And not by the evaluation, which comes after the training."""
    path = tmp_path / "gsm8k.jsonl"
    path.write_text('{"question": "How many?", "answer": "#### 3"}\n{"question": "And?", "answer": "some"}\n')
    with pytest.raises(UserError, match=r"gsm8k\.jsonl:2: the reference has no final number"):
        get_task("gsm8k").examples(path)
