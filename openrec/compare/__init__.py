"""Several recognisers on the same data with the same budget, as one table; ``tools/compare_rec.py`` calls it."""
