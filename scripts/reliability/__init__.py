"""What `scripts/measure_reliability.py` tries: random inputs, growth of time and memory, threads, and the tests that hold the rest."""
