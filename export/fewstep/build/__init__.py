"""fewstep's build: from a bundle's fp32 graphs to graphs of lower precision, engines and kernels.

Works where there is no torch: graphs need ``onnx``, engines the backend's module, kernels NVRTC.
"""
