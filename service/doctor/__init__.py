"""What this machine has for the service, what is wrong with it, and whether the demo encoders run. Prints nothing."""
