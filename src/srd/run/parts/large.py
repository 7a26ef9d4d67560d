"""Teachers that do not fit into memory: read for the cache with their layers on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from srd.base import parallel
from srd.base.errors import UserError
from srd.base.text import shown_bytes
from srd.models.loading.offload import GROUP_SHARE, SHARE, LayerGroups, free_memory, weight_bytes
from srd.models.loading.packages import quantisation
from srd.models.loading.sources import resolve_source, split_adapter
from srd.models.loading.weights import weight_files
from srd.run.context import Run
from srd.run.parts.loading import config_of, load, load_reader

logger = logging.getLogger(__name__)


def offload_folder(run: Run) -> Path:
    """Where weights lie that have to be written anew to be read layer by layer."""
    return run.files.cache / f"offload-{parallel.process()}"


def load_large(source: str, run: Run, options: dict[str, Any], offload: str) -> Any:
    """A teacher that fills a cache: all of it, or with its layers on disk where it does not fit into memory.

    Raises:
        UserError: its layers are to stay on disk, but its weights have to be changed before they are used.
    """
    device = parallel.own_gpu()
    config = config_of(source, options)
    needed, free = weight_bytes(config, str(options.get("dtype", "auto"))), free_memory(device)
    if options.get("bits") or offload == "off" or (offload == "auto" and needed <= SHARE * free):
        return load_reader(source, run, options)
    if run.recipe.cluster.engine != "local":  # the memory is that of other machines
        if offload == "auto":
            return load_reader(source, run, options)
        raise UserError("teacher.offload is always, which is for the local engine. Set teacher.offload=auto.")
    changed = options.get("adapter") or split_adapter(source)[1]
    if changed or quantisation(config) is not None:
        what = "an adapter is merged into its weights" if changed else "its weights are quantised"
        if offload == "auto":
            return load_reader(source, run, options)
        raise UserError(
            f"teacher.offload is always, but {what}, so that they are not read from disk layer by layer. Set "
            f"teacher.offload=auto{', or save the merged teacher first' if changed else ''}."
        )
    folder = offload_folder(run)
    model = load(source, run, {**options, "offload": folder})
    groups = LayerGroups(model, max(1, int(GROUP_SHARE * free)))
    model.layer_groups = groups  # type: ignore[assignment]
    batches = -(-len(run.encoded("train")) // run.recipe.generation.batch_size)
    place = Path(resolve_source(source))
    outlook = groups.outlook(-(-batches // parallel.processes()), weight_files(place) if place.is_dir() else [])
    logger.warning(
        "the teacher's weights take %s, and %s of memory are free: %s.", shown_bytes(needed), shown_bytes(free), outlook
    )
    return model
