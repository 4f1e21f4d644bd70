"""Internal: the only folder that knows TRL's private methods."""
