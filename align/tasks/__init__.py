"""What a map is judged by, on items that it never saw."""
