"""Reads checkpoints and writes bundles; never imports a runtime."""
