"""One module per thing the gateway does: gather, decide, apply."""
