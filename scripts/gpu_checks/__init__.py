"""What scripts/check_gpu.py checks."""
