"""Layer scores: numbers per decoder layer that say how much it matters, with their standard errors."""
