"""Configs that are written in the words of other systems, translated before anything else reads them."""
