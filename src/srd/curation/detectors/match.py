"""Responses that belong to another prompt."""

from __future__ import annotations

from srd.curation.detectors.base import register_contrast

register_contrast("match", "belong to another prompt", damage="swapped")
