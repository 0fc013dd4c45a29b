"""The decode kernels, each twice: ``NAME.py`` for the CPU and ``NAME.cu`` for the GPU.

A kernel reads its inputs, writes its outputs in place and returns nothing. Both forms have the
same arguments by name and give the same results; ``cpu.py`` lists the CPU forms, ``launch.py``
knows how the CUDA forms are launched, ``compile.py`` makes cubins of them.
"""
