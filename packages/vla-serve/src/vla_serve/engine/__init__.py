"""Answers requests of many sessions with one policy: no transport in it.

gRPC (:mod:`vla_serve.rpcs.service`) is one front of it; a program in the same process is another.
"""
