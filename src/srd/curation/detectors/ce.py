"""Responses that are garbled."""

from __future__ import annotations

from srd.curation.detectors.base import register_contrast

register_contrast("ce", "are garbled", damage="garbled")
