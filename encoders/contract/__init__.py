"""The values and protocols that encoders and their callers share. Imports no torch."""
