"""Image bytes to pixels, the way a model was trained to see them. Knows no model."""
