"""``fewstep calibrate quantize``: the transformer of a bundle in int8 or fp8.

settings.py, flow.py        what is asked for; from bundle to variant
rollouts.py                 what the transformer is fed while the bundle makes images
readout.py                  whose logits it is judged by
activations.py              ranges of activations, and the cache of ranges
matmuls.py                  the matmuls that may be quantized
qdq.py, fp8.py              the quantized graph: int8 by ONNX Runtime, fp8 by nvidia-modelopt
lint.py                     the proof that the graph is what TensorRT takes
sensitivity.py              what each layer costs, and the fewest to spare
tables.py, plots.py         how the outcome looks
"""
