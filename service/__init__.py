"""The HTTP service: requests, queues, batches, metrics. Sees encoders only through their contract."""
