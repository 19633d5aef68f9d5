"""The attention store: which arrays it has, how they lie in a folder or a bucket, and whether all are there.

`schema` lists the arrays, `arrays` is the one module that knows zarr, `storage` reads and writes files, `locks` says
who may write, `store` is what readers open, and `verify` checks it.
"""

__all__: list[str] = []
