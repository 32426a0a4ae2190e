"""Fusions: one file each. They differ in what they keep of the geometry and in where it enters."""
