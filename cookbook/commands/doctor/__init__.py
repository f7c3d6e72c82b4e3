"""`make check-data`: what a run would make of a reader's data, told without training."""
