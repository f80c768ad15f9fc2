"""Training: a loop that takes standard PyTorch objects, random streams, and small networks."""
