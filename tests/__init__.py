"""Tests, each named for the claim that it proves."""
