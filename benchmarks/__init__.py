"""Measurements, each a module to run; tests never time anything."""
