"""HTTP: `classify` is the hot path, one ASGI handler; `ops` the rest; `errors` makes problems of exceptions."""
