"""Students: consistency functions, their objectives, couplings and losses, what they learn from, how they sample."""
