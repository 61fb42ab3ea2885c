"""gRPC: the server, its guard, identities, errors, pages, calls between services."""
