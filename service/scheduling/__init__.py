"""The queue, the device's threads, and the policies that say which batch runs next."""
