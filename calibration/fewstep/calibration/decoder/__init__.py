"""``fewstep calibrate decoder``: a small decoder, distilled from the bundle's own on its rollouts.

options.py, flow.py    what is asked for; from bundle to distilled decoder in the bundle
examples.py            what the full decoder reads in rollouts, and the images that it draws
training.py            the student's size, its start, and its training
"""
