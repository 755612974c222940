"""Graphs larger than memory: arrays in plain files read block by block, their folder, conversion, augmentation."""
