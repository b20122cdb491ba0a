"""What a job runs on: devices, processes, signals, progress, and what its results are traced to."""
