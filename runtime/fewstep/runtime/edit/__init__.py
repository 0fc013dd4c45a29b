"""Editing pictures: parts painted anew, pictures that grow, variations.

``call.py`` is ``Generator.edit``. ``given.py`` reads pictures and masks, ``fit.py`` brings them to
the bundle's size, ``edit.py`` checks what is to become of them, ``paint.py`` does it, with
``windows.py`` and ``blend.py`` for what is larger than one picture of the bundle.
"""
