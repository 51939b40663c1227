"""How long a bulk run takes on how many cards, and which stage holds it up. Arithmetic; runs nothing but a sample."""
