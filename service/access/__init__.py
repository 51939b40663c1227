"""Who may ask, and for how much: access keys, their file, and what each has used."""
