"""Responses that belong to another prompt, found with fewer passes than `match` takes, and less surely."""

from __future__ import annotations

from srd.curation.detectors.base import register_contrast

register_contrast("pmi", "do not follow from their prompt", damage="swapped")
