"""Several networks, several seeds, one answer: which is better, by how much, and how sure that is."""
