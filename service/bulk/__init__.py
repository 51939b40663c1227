"""Many image files through the engine into one file, resumable; and search in it."""
