"""fewstep as a model of Triton Inference Server: its repository, and what its backend runs."""
