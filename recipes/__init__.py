"""Recipes: how the checkpoints that ship with moddit were made."""
