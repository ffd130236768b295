"""What the gateway answers over HTTP: the read-only REST, on the Unix socket and, where [web] is set, on a port."""
