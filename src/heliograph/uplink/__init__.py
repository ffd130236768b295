"""Platforms that take closed days: one module per platform."""
