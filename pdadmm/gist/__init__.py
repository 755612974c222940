"""GIST (Wolfe et al. 2021): a wide GNN trained as narrow ones that hold a part of its hidden dimensions each."""
