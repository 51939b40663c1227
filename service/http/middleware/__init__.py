"""What every request passes, whichever route it asks for."""
