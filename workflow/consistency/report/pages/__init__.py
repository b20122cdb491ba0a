"""Interactive pages, one a file with its template; each has `draw(path, …)`. `shell` holds what they share."""
