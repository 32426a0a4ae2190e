"""Who looks on while a server answers: metrics, traces, logs."""
