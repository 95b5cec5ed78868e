"""The networks of a run: recipes, how each is trained, what pruning did to them."""
