"""Text and messages to tokens and back. No tensors, no clock."""
