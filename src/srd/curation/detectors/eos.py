"""Responses that are cut off."""

from __future__ import annotations

from srd.curation.detectors.base import register_contrast

register_contrast("eos", "are cut off", damage="cut")
