"""The process and the machine that a server runs on: addresses, files, memory, idle cores, the end."""
