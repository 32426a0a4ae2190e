"""Answers requests of many sessions with one policy: no transport in it.

gRPC (:mod:`vla_serve.service`) is one front of it; a program in the same process is another.
"""
