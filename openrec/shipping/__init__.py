"""From a trained model to a file in ``weights/``: test sets, an evaluation that cannot flatter, packing, a card."""
