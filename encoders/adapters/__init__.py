"""One scheme of encoder ids each: an id in, an encoder or its blueprint out."""
