"""Bundles for MLX."""
