"""What is read of a run: decision card, explorer, model card, README, comparison, hand-off."""
