"""Solvers to compare pdADMM-G with: the same network, other ways to train it."""
