"""Figures, one a file; each has `draw(pdf, png, runs, …)`. `style` holds what they share."""
