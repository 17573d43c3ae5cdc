"""Compare networks over several seeds: which is better, by how much, and how certain that is."""
