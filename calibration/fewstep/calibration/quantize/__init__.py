"""``fewstep calibrate quantize``: graphs of a bundle in int8 or fp8.

settings.py, by_graph.py    what is asked for, of a bundle and of every graph
flow.py, one_graph.py       from bundle to variant; one graph of it
rollouts.py                 what graphs are fed while the bundle makes images
readout.py, judge.py        what a graph is judged by, and how
activations.py, cache.py    ranges of activations, and the cache of ranges
matmuls.py                  the matmuls that may be quantized
qdq.py, fp8.py              the quantized graph: int8 by ONNX Runtime, fp8 by nvidia-modelopt
lint.py                     the proof that the graph is what TensorRT takes
sensitivity.py              what each layer costs, and the fewest to spare
outcome.py                  what was made
tables.py, plots.py         how that looks
"""
