"""What is read from a model besides its logits: attention, gradients, norms, and facts about its tokens.

`attention` finds the tensor that multiplies the values in every block, `facts` describes the tokens, and `tapped` is
the model with all its outputs, ready to be traced.
"""

__all__: list[str] = []
