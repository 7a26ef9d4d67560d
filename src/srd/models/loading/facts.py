"""What is known of where a model comes from: its name on the hub, and the licence that its page states."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download

from srd.models.loading.sources import split_adapter
from srd.models.settings import HUB_NAME, SMOLLM2

CARD = "README.md"


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        name: How people call it: its name on the hub, else that of its folder or file.
        hub: Its name on the hub; None where it has none that is known.
        license: As its page states it; None where none does.
        license_name: Of a licence that the hub does not know by name.
        license_link: Of the same.
    """

    name: str
    hub: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None

    @property
    def terms(self) -> dict[str, str]:
        """What a model card says of the licence."""
        known = {"license": self.license, "license_name": self.license_name, "license_link": self.license_link}
        return {key: value for key, value in known.items() if value}


def origin_of(source: str, revision: str | None = None) -> Origin:
    """Say where a model comes from, by its folder's README.md or its page on the hub, if that can be reached."""
    if source == SMOLLM2:
        return Origin("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    place = Path(split_adapter(source)[0]).expanduser()
    if place.exists():
        stated = _front_matter(place / CARD if place.is_dir() else place.parent / CARD)
        base = stated.get("base_model")
        base = base[0] if isinstance(base, list) and base else base
        return Origin(place.resolve().name, _hub_name(base), **_terms(stated))
    stated = {}
    with contextlib.suppress(Exception):  # no network, no such page: then nothing is known
        stated = _front_matter(Path(hf_hub_download(source, CARD, revision=revision)))
    return Origin(source, _hub_name(source), **_terms(stated))


def _terms(stated: dict[str, Any]) -> dict[str, str]:
    return {key: stated[key] for key in ("license", "license_name", "license_link") if isinstance(stated.get(key), str)}


def _hub_name(name: Any) -> str | None:
    return name if isinstance(name, str) and HUB_NAME.fullmatch(name) and "/" in name else None


def _front_matter(path: Path) -> dict[str, Any]:
    """What stands between the two lines of dashes at the head of a page; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        head, text, *_ = path.read_text(encoding="utf-8").removeprefix("\ufeff").split("---\n", 2)[0:2]
        found = yaml.safe_load(text) if not head.strip() else None
        return found if isinstance(found, dict) else {}
    return {}
