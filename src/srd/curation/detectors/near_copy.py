"""Rows that nearly repeat another row, of which one is enough. Which of them stays is decided where rows are marked."""

from __future__ import annotations

from srd.curation.detectors.base import DETECTORS, Detector

DETECTORS.register("near_copy")(Detector("near_copy", "nearly repeat another row", of_copies=True))
