"""Methods that save work, compared on one world: quality, FLOPs and time, each beside fewer steps at the same cost.

Run it with ``python -m recipes.comparison --world shapes64 --work DIR`` (a minute with ``--smoke``). Every stage goes
on where it stopped.
"""
