"""Heliograph: every watt-hour of a solar meter, from the register to the certificate platform."""

__version__ = "0.1.0"
