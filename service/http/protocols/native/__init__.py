"""This project's own protocol: /embed and /similarity."""
