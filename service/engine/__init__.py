"""Request values in, result values out: embeddings and scores. Knows no protocol."""
