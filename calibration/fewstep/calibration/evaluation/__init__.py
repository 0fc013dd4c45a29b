"""``fewstep evaluate``: how far generated images are from real ones, by features of a network.

images.py       sets of images: folders and archives, read batch by batch
networks.py     what turns images into features: Inception, or EfficientNet-Lite0
statistics.py   Gaussians of features, in files
metrics.py      Inception Score, precision and recall
flow.py         from two places to a report
"""
