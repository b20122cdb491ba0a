"""Files and folders: written whole or not at all, hashed, locked, bounded, and read with checks."""
