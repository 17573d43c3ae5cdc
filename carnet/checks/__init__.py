"""Find what is wrong with labelled images before training: `carnet check`."""
