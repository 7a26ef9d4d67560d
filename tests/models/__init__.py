"""Tests of loading, shrinking, vocabularies and adapters."""
