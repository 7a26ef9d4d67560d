"""The parts of the method in a loop of your own, without a run directory.

python own_loop.py TEACHER STUDENT ROWS.jsonl OUT
"""

import json
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import srd

teacher_name, student_name, rows_file, out = sys.argv[1:5]
with open(rows_file, encoding="utf-8") as file:
    rows = [{"id": str(number), **json.loads(line)} for number, line in enumerate(file)]
tokenizer = AutoTokenizer.from_pretrained(student_name)
student = AutoModelForCausalLM.from_pretrained(student_name)
teacher = AutoModelForCausalLM.from_pretrained(teacher_name)

# The student answers, and is surprised by the references; that is how hard each row is for it.
scores = srd.reflect(student, tokenizer, rows, max_new_tokens=16)
stages = srd.Curriculum(stages=2, select=0.75).split(srd.rank(scores))

by_id = {row["id"]: row for row in rows}
for stage in stages:
    trainer = srd.DistillTrainer(
        student,
        TrainingArguments(f"{out}/{stage.index}", num_train_epochs=1, save_strategy="no", report_to="none"),
        train_dataset=[by_id[name] for name in stage.ids],
        processing_class=tokenizer,
        teacher=teacher,
        objective="srkl",
        temperature=stage.temperature,
        weight=stage.weight,
    )
    loss = trainer.train().training_loss
    print(f"stage {stage.index}: {len(stage.ids)} rows, temperature {stage.temperature:.1f}, loss {loss:.3f}")
student.save_pretrained(out)
tokenizer.save_pretrained(out)
