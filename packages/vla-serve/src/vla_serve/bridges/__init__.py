"""Servers in the words of other systems, each a client of ``vla-serve``: WebSocket and msgpack."""
