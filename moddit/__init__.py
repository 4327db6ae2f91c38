"""The meaning of a routed diffusion transformer, shared by every backend: standard library and numpy only."""

__version__ = "0.1.0"
