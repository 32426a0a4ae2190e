"""A robot described in data, not in code: which columns and cameras of a data set it is made of."""
