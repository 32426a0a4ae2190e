"""StarVLA's config keys in ours: the table, how its files are known, and what applies the table to them."""
