"""Tensors, images, specs and errors to and from their messages."""
