"""Training: one loop of stations that takes standard PyTorch objects."""
