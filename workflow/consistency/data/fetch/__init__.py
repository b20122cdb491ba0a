"""Files from the network: over HTTP, and from the Hugging Face hub."""
