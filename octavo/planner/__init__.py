"""Arithmetic of cost. No tensors."""
