"""Internal: attention over a prefix tree."""
