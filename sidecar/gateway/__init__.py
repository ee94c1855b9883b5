"""The data plane: from a request on a socket to its answer."""
