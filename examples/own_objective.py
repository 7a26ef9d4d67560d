"""A divergence of your own, beside a built-in one in the same report.

python own_objective.py TEACHER STUDENT ROWS.jsonl
"""

import sys

import srd


@srd.register_divergence("bhattacharyya")
def bhattacharyya(log_p, log_q):
    """Minus the logarithm of the overlap: [N, V], [N, V] -> [N]; 0 where teacher and student say the same."""
    return -((log_p + log_q) / 2).logsumexp(-1)


teacher, student, rows = sys.argv[1:4]
result = srd.run(
    {
        "name": "own-objective",
        "teacher": teacher,
        "student": student,
        "data": rows,
        "generation": {"max_new_tokens": 64},
        "training": {"objective": "bhattacharyya", "epochs": 1},
        "baselines": {"srkl": {"objective": "srkl"}},
        "evaluation": {"seeds": [1]},
    }
)
print({model: tasks["test"]["rouge_l"]["mean"] for model, tasks in result.metrics.items()})
