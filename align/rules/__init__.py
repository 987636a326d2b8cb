"""Decision rules: from similarities to answers."""
