"""Published forms, one a module: what ``fewstep export NAME`` asks for, and how it is read."""
