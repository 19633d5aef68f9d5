"""The attention store: its arrays, its files in a folder or bucket, and their verification.

`schema` lists the arrays, `arrays` is the only module that uses zarr, `storage` reads and writes files, `locks` lets
only one process write, `store` is the class that users open, `reader` its half that reads, and `verify` checks a store.
"""

__all__: list[str] = []
