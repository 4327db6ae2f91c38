"""The embedded text-to-image checkpoint, trained from scratch on procedurally drawn scenes.

Run the whole recipe with ``python -m recipes.shapes64 --work DIR`` (a minute with ``--smoke``).
"""
