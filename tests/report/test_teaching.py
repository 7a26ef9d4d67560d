"""What the page says of a teacher's tokens and of its cache."""

from __future__ import annotations

import json
from pathlib import Path

from srd.report.page import page
from srd.report.reading import read_run
from srd.report.teaching import alignment_table, cache_table
from tests.report.fake_run import write_run


def test_the_page_tells_what_was_supervised_and_how_true_the_cache_is(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", examples=40)
    before = read_run(run_dir)
    assert alignment_table(before) is None and cache_table(before) is None
    assert "could supervise" not in page(before) and "teacher cache is" not in page(before)
    path = run_dir / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["steps"]["train/srd"]["summary"] |= {"supervised": 0.7654, "by_chunks": 0.0321, "mass": 0.79}
    error = {"mean_kl": 3.5e-4, "p99_kl": 2.3e-3, "mean_tv": 8.4e-3, "flips": 0.016}
    manifest["steps"]["cache"]["summary"] |= {"bytes": 5_000_000, **error}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    after = read_run(run_dir)
    aligned, cached = alignment_table(after), cache_table(after)
    assert aligned is not None and cached is not None
    texts = [[text for text, _ in next(table.texts())] for table in (aligned, cached)]
    assert texts[0] == ["SRD", "76.5%", "3.2%", "79.0%"]
    assert texts[1][1:] == ["5.0 MB", "3.5e-04", "2.3e-03", "8.4e-03", "1.6%"]
    assert "76.5%" in page(after) and "3.5e-04" in page(after)
