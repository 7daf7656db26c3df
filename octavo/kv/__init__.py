"""Cache memory: the tensors behind the block ids."""
