"""One picture at once: what a model made of it, from a graph or out of a store, as one figure.

`subject` is a picture with all that is known of it, `maps` computes what can be laid over it, `page` puts cells on a
sheet, `views` says which cells a request asks for, `walk` follows a picture from patches to prediction, `folder` writes
overlays of a dataset, `together` says which options exclude each other, `html` is what notebooks show, and `show` is
the function that users call.
"""

__all__: list[str] = []
