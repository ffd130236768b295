"""Values in, values out: no files, network, clock, threads, random or logging in here."""
