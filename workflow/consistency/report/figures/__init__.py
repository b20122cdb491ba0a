"""Figures, one a file; each has `draw(pdf, png, runs, …)`, which returns its figure. `style` holds what they share."""
