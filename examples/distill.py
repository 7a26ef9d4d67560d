"""A small model from a large one: two names and a file of rows in, a student out.

python distill.py TEACHER STUDENT ROWS.jsonl
"""

import sys

import srd

teacher, student, rows = sys.argv[1:4]

# Everything is kept in runs/example: the same call goes on where it was stopped.
result = srd.distill(
    teacher,
    student,
    rows,
    curriculum=srd.Curriculum(),  # easy to hard, without the hardest quarter; leave it out for plain distillation
    epochs=1,
    generation={"max_new_tokens": 64},
    evaluation={"seeds": [1]},
    run_dir="runs/example",
)
for model, tasks in result.metrics.items():
    print(f"{model:8} ROUGE-L {tasks['test']['rouge_l']['mean']:.1f}")
print("report:", result.report)
