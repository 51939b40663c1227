"""Wire protocols: each turns a body into an engine request and a result into bytes."""
