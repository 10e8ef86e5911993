"""What a model does inside: numbers that warn while it trains, and pictures of single images.

``scalars`` reduces what modules tell (``openrec.modeling.record``), ``watch`` knows when to warn; ``told``, ``panels``
and ``page`` draw.
"""
