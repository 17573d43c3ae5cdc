"""Images: find them (`sources`), look inside (`check`), hold some back (`split`), draw some (`synthetic`)."""
