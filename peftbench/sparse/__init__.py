"""The selective engine: which entries of which tensors train, and how that costs what the budget says."""
