"""The lifecycle, one function per file: frozen spec sections and input artifacts in, one artifact out.

A stage's parameters are its declaration: those named like a section of ``RunSpec`` receive it, those named like an
artifact in ``pipeline.plan`` receive what an earlier stage produced, and ``ctx`` is the context. A stage's key follows
from the same names, so a stage cannot depend on what its key leaves out.
"""
