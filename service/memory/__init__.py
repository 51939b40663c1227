"""The bytes of the device: who has how many, and how large a batch the rest allows."""
