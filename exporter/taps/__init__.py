"""What a model shows beside its logits: attention, gradients, norms, and the facts of its tokens.

`attention` finds the tensor that multiplies the values in every block, `facts` says what the tokens are, and `tapped`
is the model with all its outputs, ready to be traced.
"""

__all__: list[str] = []
