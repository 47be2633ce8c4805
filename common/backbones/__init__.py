"""Backbones: chips in, unit-norm embeddings out."""
