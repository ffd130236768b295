"""Simulated meters and stand-in platforms, so that a site can be rehearsed before it goes live."""
