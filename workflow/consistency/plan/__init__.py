"""What an experiment costs and needs, before any job."""
