"""Mini-batches of a graph: sampled neighbours, clusters, random walks; a batch depends on (seed, iteration, step)."""
