"""Responses that are garbled."""

from __future__ import annotations

from srd.curation.detectors.base import register_contrast

register_contrast("wording", "are garbled", damage="garbled")
