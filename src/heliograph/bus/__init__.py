"""Lines with meters: one module per technology, each wraps one outside library."""
