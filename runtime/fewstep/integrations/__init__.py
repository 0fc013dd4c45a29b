"""fewstep in systems that run on many machines; each needs its own packages."""
