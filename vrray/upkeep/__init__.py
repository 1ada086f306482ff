"""Looking after a store: what is in it, whether it is whole, and what nobody uses any more."""
