"""Tests of `srd.data`."""
