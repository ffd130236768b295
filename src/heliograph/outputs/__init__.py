"""Who shows readings to others: one module per technology; each wraps one outside library."""
