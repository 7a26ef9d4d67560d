"""Processes that share a machine."""

from __future__ import annotations

import pytest
import torch

from srd.base.errors import UserError
from srd.base.parallel import check_gpus


@pytest.mark.parametrize(("processes", "gpus", "fits"), [(2, 1, False), (8, 4, False), (4, 4, True), (2, 0, True)])
def test_each_process_has_a_gpu_of_its_own_where_there_are_any(
    processes: int, gpus: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if fits:
        check_gpus()
    else:
        with pytest.raises(UserError, match=f"{processes} processes .* torch sees {gpus} GPU.*--nproc-per-node"):
            check_gpus()
