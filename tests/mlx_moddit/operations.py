"""Count the operations of a lazy MLX graph: on a GPU about each of them is a kernel to start."""

from __future__ import annotations

import io
import re
from collections import Counter
from typing import Final

import mlx.core as mx

# Ways to look at an array: nothing is computed, and rarely something copied.
VIEWS: Final = frozenset(
    ("Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unflatten")
) | {"View float16", "View uint32"}


def count_operations(*arrays: mx.array) -> Counter[str]:
    """Count the primitives that evaluating arrays would run, by name; what is evaluated already is not among them."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return Counter(re.findall(r'label ="([^"]*)", shape=rectangle', graph.getvalue()))
