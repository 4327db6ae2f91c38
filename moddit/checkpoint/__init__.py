"""Checkpoints: what folders and files say becomes a specification, a plan, and tensors under canonical names."""
