"""The meaning of a routed diffusion transformer, shared by every backend: standard library, numpy and msgspec only."""

__version__ = "0.1.0"
