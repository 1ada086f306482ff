"""A variant, or any supported model with layers removed, as a directory that plain transformers loads."""
