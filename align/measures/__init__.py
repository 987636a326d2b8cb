"""How alike two spaces are, without any map between them."""
