"""Recovery of int8 accuracy: which tensors cost it, remedies, and the loop that tries them."""
