"""Bundles for Core ML."""
