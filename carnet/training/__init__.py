"""Training: from a config (`carnet.config`) to a finished run; read `run` for the whole, `loop` for the steps."""
